// A client that sends half a put, says "half", and then stands still until it is killed.
//   half_put ADDRESS SESSION
#include <unistd.h>

#include <cstdio>

#include "tests/e2e/daemon.h"

int main(int argc, char** argv) {
  using namespace kvcask;
  if (argc != 3) return 2;
  auto client = Client::Connect(argv[1]);
  if (!client.ok()) return 1;
  auto put = client->OpenPut(OpenOf(argv[2], "raw"));
  if (!put.ok()) return 1;
  const v1::Rectangle r = MakeRectangle(0, 30, 0, 128);
  if (!put->Write(r, ExampleBytes(r)).ok()) return 1;
  std::puts("half");
  std::fflush(stdout);
  for (;;) pause();
}
