#include "tests/fuzz/mutate.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <algorithm>

namespace kvcask::fuzz {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

// Values at which code goes wrong: around zero, powers of two, the ends of types.
uint64_t Edge(Random& random, uint64_t current) {
  switch (Below(random, 8)) {
    case 0:
      return 0;
    case 1:
      return current + 1;
    case 2:
      return current - 1;
    case 3:
      return ~uint64_t{0} - Below(random, 3);
    case 4:
      return (uint64_t{1} << Below(random, 64)) + Below(random, 3) - 1;
    case 5:
      return Below(random, 300);
    case 6:
      return uint64_t{0xffffffff} - Below(random, 3);
    default:
      return random();
  }
}

std::string Text(Random& random, std::string text) {
  switch (Below(random, 6)) {
    case 0:
      return "";
    case 1:
      return std::string(Below(random, 20000), static_cast<char>('a' + Below(random, 26)));
    case 2:
      return text + static_cast<char>(Below(random, 32));  // a control character
    case 3:
      return text.substr(0, text.size() / 2);
    case 4:
      return text + text;
    default:
      text.insert(text.begin() + Below(random, text.size() + 1), static_cast<char>('/'));
      return text;
  }
}

void MutateScalar(Message* m, const FieldDescriptor* f, Random& random, int index) {
  const Reflection* r = m->GetReflection();
  const bool repeated = index >= 0;
  switch (f->cpp_type()) {
    case FieldDescriptor::CPPTYPE_UINT32: {
      const auto v = static_cast<uint32_t>(
          Edge(random, repeated ? r->GetRepeatedUInt32(*m, f, index) : r->GetUInt32(*m, f)));
      repeated ? r->SetRepeatedUInt32(m, f, index, v) : r->SetUInt32(m, f, v);
      break;
    }
    case FieldDescriptor::CPPTYPE_UINT64: {
      const uint64_t v =
          Edge(random, repeated ? r->GetRepeatedUInt64(*m, f, index) : r->GetUInt64(*m, f));
      repeated ? r->SetRepeatedUInt64(m, f, index, v) : r->SetUInt64(m, f, v);
      break;
    }
    case FieldDescriptor::CPPTYPE_INT32:
      if (!repeated) r->SetInt32(m, f, static_cast<int32_t>(Edge(random, r->GetInt32(*m, f))));
      break;
    case FieldDescriptor::CPPTYPE_INT64:
      if (!repeated) r->SetInt64(m, f, static_cast<int64_t>(Edge(random, r->GetInt64(*m, f))));
      break;
    case FieldDescriptor::CPPTYPE_FLOAT: {
      const float values[] = {0, -1, 1e38f, -1e38f, 1 / 0.f, 0 / 0.f, 1e-45f};
      const float v = values[Below(random, 7)];
      repeated ? r->SetRepeatedFloat(m, f, index, v) : r->SetFloat(m, f, v);
      break;
    }
    case FieldDescriptor::CPPTYPE_BOOL:
      if (!repeated) r->SetBool(m, f, !r->GetBool(*m, f));
      break;
    case FieldDescriptor::CPPTYPE_ENUM: {
      const int v =
          OneIn(random, 3) ? static_cast<int>(random()) : static_cast<int>(Below(random, 6));
      repeated ? r->SetRepeatedEnumValue(m, f, index, v) : r->SetEnumValue(m, f, v);
      break;
    }
    case FieldDescriptor::CPPTYPE_STRING: {
      std::string v =
          Text(random, repeated ? r->GetRepeatedString(*m, f, index) : r->GetString(*m, f));
      if (f->type() == FieldDescriptor::TYPE_STRING) {
        v.erase(std::remove_if(v.begin(), v.end(), [](char c) { return c < 0; }), v.end());
      }
      repeated ? r->SetRepeatedString(m, f, index, v) : r->SetString(m, f, v);
      break;
    }
    default:
      break;
  }
}

void AddElement(Message* m, const FieldDescriptor* f, Random& random) {
  const Reflection* r = m->GetReflection();
  const int n = r->FieldSize(*m, f);
  switch (f->cpp_type()) {
    case FieldDescriptor::CPPTYPE_MESSAGE: {
      Message* added = r->AddMessage(m, f);
      if (n > 0) added->CopyFrom(r->GetRepeatedMessage(*m, f, static_cast<int>(Below(random, n))));
      break;
    }
    case FieldDescriptor::CPPTYPE_UINT32:
      for (uint64_t i = OneIn(random, 8) ? 2000 : 1; i > 0; --i) {
        r->AddUInt32(m, f, static_cast<uint32_t>(Edge(random, 0)));
      }
      break;
    case FieldDescriptor::CPPTYPE_FLOAT:
      r->AddFloat(m, f, 1);
      break;
    case FieldDescriptor::CPPTYPE_ENUM:
      r->AddEnumValue(m, f, static_cast<int>(Below(random, 5)));
      break;
    default:
      break;
  }
}

std::string Varint(uint64_t v) {
  uint8_t bytes[10];
  uint8_t* end = google::protobuf::io::CodedOutputStream::WriteVarint64ToArray(v, bytes);
  return std::string(reinterpret_cast<char*>(bytes), end - bytes);
}

std::string UnknownField(Random& random) {
  const uint32_t type = static_cast<uint32_t>(Below(random, 6));  // 3, 4: groups
  const uint32_t number = static_cast<uint32_t>(16 + Below(random, 5000));
  std::string field = Varint(number << 3 | type);
  switch (type) {
    case 0:
      return field + Varint(random());
    case 1:
      return field + std::string(8, 'u');
    case 2: {
      const size_t n = Below(random, 100);
      return field + Varint(n) + std::string(n, 'u');
    }
    case 3:
      return field + Varint(number << 3 | 4);
    case 5:
      return field + std::string(4, 'u');
    default:
      return field;  // the end of a group that did not begin
  }
}

}  // namespace

void MutateField(Message* message, Random& random) {
  const Reflection* r = message->GetReflection();
  const auto* descriptor = message->GetDescriptor();
  if (descriptor->field_count() == 0) return;
  std::vector<const FieldDescriptor*> set;
  r->ListFields(*message, &set);
  const bool existing = !set.empty() && !OneIn(random, 4);
  const FieldDescriptor* f =
      existing ? set[Below(random, set.size())]
               : descriptor->field(static_cast<int>(Below(random, descriptor->field_count())));
  if (f->is_map()) return;
  if (f->is_repeated()) {
    const int n = r->FieldSize(*message, f);
    const uint64_t what = Below(random, 4);
    if (n == 0 || what == 0) return AddElement(message, f, random);
    if (what == 1) return r->RemoveLast(message, f);
    const int i = static_cast<int>(Below(random, n));
    if (f->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      return MutateField(r->MutableRepeatedMessage(message, f, i), random);
    }
    return MutateScalar(message, f, random, i);
  }
  if (f->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
    if (r->HasField(*message, f) && OneIn(random, 8)) return r->ClearField(message, f);
    return MutateField(r->MutableMessage(message, f), random);
  }
  MutateScalar(message, f, random, -1);
}

std::vector<std::string> SplitFields(const std::string& bytes) {
  std::vector<std::string> fields;
  google::protobuf::io::ArrayInputStream array(bytes.data(), static_cast<int>(bytes.size()));
  google::protobuf::io::CodedInputStream in(&array);
  int begin = 0;
  for (;;) {
    const uint32_t tag = in.ReadTag();
    bool ok = tag != 0;
    uint64_t n = 0;
    switch (tag & 7) {
      case 0:
        ok = ok && in.ReadVarint64(&n);
        break;
      case 1:
        ok = ok && in.Skip(8);
        break;
      case 2:
        ok = ok && in.ReadVarint64(&n) && n <= bytes.size() && in.Skip(static_cast<int>(n));
        break;
      case 5:
        ok = ok && in.Skip(4);
        break;
      default:
        ok = false;
    }
    if (!ok) break;
    const int end = in.CurrentPosition();
    fields.push_back(bytes.substr(begin, end - begin));
    begin = end;
  }
  if (begin < static_cast<int>(bytes.size())) fields.push_back(bytes.substr(begin));
  return fields;
}

void MutateBytes(std::string* bytes, Random& random) {
  if (bytes->empty()) {
    *bytes = UnknownField(random);
    return;
  }
  const size_t at = Below(random, bytes->size());
  // Heads are short and payloads long: most changes are near the front.
  const size_t near = Below(random, std::min<size_t>(bytes->size(), 64));
  switch (Below(random, 9)) {
    case 0:
      (*bytes)[near] = static_cast<char>((*bytes)[near] ^ (1 << Below(random, 8)));
      break;
    case 1:
      bytes->resize(at);
      break;
    case 2:
      bytes->insert(near, 1 + Below(random, 4), static_cast<char>(random()));
      break;
    case 3:
      bytes->erase(near, 1 + Below(random, 4));
      break;
    case 4:
      bytes->append(*bytes, at, 1 + Below(random, 50));
      break;
    case 5: {  // the fields in another order, at the top or one level down
      std::vector<std::string> fields = SplitFields(*bytes);
      std::shuffle(fields.begin(), fields.end(), random);
      bytes->clear();
      for (const std::string& f : fields) bytes->append(f);
      break;
    }
    case 6: {  // the same inside the only field of a message
      google::protobuf::io::ArrayInputStream array(bytes->data(), static_cast<int>(bytes->size()));
      google::protobuf::io::CodedInputStream in(&array);
      const uint32_t tag = in.ReadTag();
      uint64_t n = 0;
      if ((tag & 7) != 2 || !in.ReadVarint64(&n) || n != bytes->size() - in.CurrentPosition())
        break;
      std::vector<std::string> fields = SplitFields(bytes->substr(in.CurrentPosition()));
      if (OneIn(random, 2)) fields.push_back(UnknownField(random));
      if (OneIn(random, 4) && !fields.empty())
        fields.push_back(fields[Below(random, fields.size())]);
      std::shuffle(fields.begin(), fields.end(), random);
      std::string inner;
      for (const std::string& f : fields) inner.append(f);
      *bytes = Varint(tag) + Varint(inner.size()) + inner;
      break;
    }
    case 7:
      bytes->append(UnknownField(random));
      break;
    default:
      bytes->insert(0, UnknownField(random));
  }
}

}  // namespace kvcask::fuzz
