#include "client/cc/status.h"

#include <gtest/gtest.h>

#include "kvcask/v1/errors.pb.h"

namespace kvcask {
namespace {

grpc::Status RichStatus() {
  v1::ErrorInfo info;
  info.set_reason("OVER_BUDGET");
  info.set_domain("kvcask");
  v1::RetryInfo retry;
  retry.mutable_retry_delay()->set_nanos(250000000);
  v1::RpcStatus rich;
  for (const auto& [name, value] :
       {std::pair<const char*, std::string>{"ErrorInfo", info.SerializeAsString()},
        {"RetryInfo", retry.SerializeAsString()},
        {"Unheard", "\xff\xff"}}) {
    auto* any = rich.add_details();
    any->set_type_url(std::string("type.googleapis.com/google.rpc.") + name);
    any->set_value(value);
  }
  return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "no room", rich.SerializeAsString());
}

TEST(StatusTest, OkStaysOk) {
  EXPECT_TRUE(FromGrpc(grpc::Status::OK).ok());
  EXPECT_EQ(Describe(absl::OkStatus()), "OK");
}

TEST(StatusTest, CodeMessageAndDetailsAreKept) {
  const absl::Status status = FromGrpc(RichStatus());
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(), "no room");
  const ErrorDetails details = DetailsOf(status);
  EXPECT_EQ(details.reason, "OVER_BUDGET");
  EXPECT_EQ(details.domain, "kvcask");
  ASSERT_TRUE(details.retry_after.has_value());
  EXPECT_EQ(*details.retry_after, absl::Milliseconds(250));
  EXPECT_EQ(Describe(status),
            "RESOURCE_EXHAUSTED: no room\n  reason: OVER_BUDGET\n  retry after 250ms");
}

TEST(StatusTest, AnnotateKeepsTheDetails) {
  const absl::Status status = Annotate(FromGrpc(RichStatus()), "file.st");
  EXPECT_EQ(status.message(), "file.st: no room");
  EXPECT_EQ(DetailsOf(status).reason, "OVER_BUDGET");
}

TEST(StatusTest, DetailsThatCannotBeReadAreNone) {
  for (const std::string noise : {"\xff\xff\xff", "\x1a\x7f", "\x1a\x02\x0a\x7f"}) {
    const ErrorDetails details =
        DetailsOf(FromGrpc(grpc::Status(grpc::StatusCode::INTERNAL, "m", noise)));
    EXPECT_EQ(details.reason, "");
    EXPECT_FALSE(details.retry_after.has_value());
  }
  EXPECT_EQ(DetailsOf(absl::InternalError("plain")).reason, "");
}

}  // namespace
}  // namespace kvcask
