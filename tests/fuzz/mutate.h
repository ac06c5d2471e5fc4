// Mutations of protocol messages: of their fields, by reflection, and of their bytes.
//
// Deterministic: all choices come from the generator that is passed. Not thread-safe.
#pragma once

#include <google/protobuf/message.h>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace kvcask::fuzz {

using Random = std::mt19937_64;

// [0, n); n > 0.
inline uint64_t Below(Random& random, uint64_t n) { return random() % n; }
inline bool OneIn(Random& random, uint64_t n) { return Below(random, n) == 0; }

// Changes one field somewhere in the tree of `message`: an edge value, another enum value,
// text of another length or with control characters, a submessage that goes or comes, an
// element more or less.
void MutateField(google::protobuf::Message* message, Random& random);

// Changes the encoding: bits flipped, bytes cut, inserted or repeated, fields in another
// order, unknown fields of every wire type, fields twice.
void MutateBytes(std::string* bytes, Random& random);

// The top-level fields of an encoding, each with its tag; the rest, if it cannot be read, as
// the last one.
std::vector<std::string> SplitFields(const std::string& bytes);

}  // namespace kvcask::fuzz
