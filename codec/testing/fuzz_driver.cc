// main() for a fuzz target without libFuzzer: runs the files named as arguments, then
// `--runs=N` mutations of them from a seed that it prints (or that `--seed=S` gives).
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Input = std::vector<uint8_t>;

// Exactly as long as the input, so that a sanitizer sees the byte after it.
void RunOne(const Input& input) {
  uint8_t* exact = static_cast<uint8_t*>(std::malloc(std::max<size_t>(input.size(), 1)));
  std::copy(input.begin(), input.end(), exact);
  LLVMFuzzerTestOneInput(exact, input.size());
  std::free(exact);
}

void Mutate(Input& input, const std::vector<Input>& corpus, std::mt19937& rng) {
  static constexpr uint32_t kNumbers[] = {0,   1,          127,        128,       255,
                                          256, 0x7fffffff, 0x80000000, 0xffffffff};
  for (int n = 1 + rng() % 4; n > 0; --n) {
    const size_t at = input.empty() ? 0 : rng() % input.size();
    switch (rng() % 6) {
      case 0:
        if (!input.empty()) input[at] ^= 1 << rng() % 8;
        break;
      case 1:
        if (!input.empty()) input[at] = rng();
        break;
      case 2: {
        const uint32_t number = kNumbers[rng() % std::size(kNumbers)];
        if (at + 4 <= input.size()) std::memcpy(&input[at], &number, 4);
        break;
      }
      case 3:
        input.resize(at);
        break;
      case 4:
        input.insert(input.begin() + at, 1 + rng() % 16, static_cast<uint8_t>(rng()));
        break;
      default: {
        const Input& other = corpus[rng() % corpus.size()];
        const size_t cut = other.empty() ? 0 : rng() % other.size();
        input.resize(at);
        input.insert(input.end(), other.begin() + cut, other.end());
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  long runs = 0;
  unsigned long seed = std::random_device{}();
  std::vector<Input> corpus;
  for (int i = 1; i < argc; ++i) {
    if (std::strncmp(argv[i], "--runs=", 7) == 0) {
      runs = std::atol(argv[i] + 7);
    } else if (std::strncmp(argv[i], "--seed=", 7) == 0) {
      seed = std::strtoul(argv[i] + 7, nullptr, 10);
    } else {
      std::ifstream file(argv[i], std::ios::binary);
      if (!file) {
        std::fprintf(stderr, "cannot read %s\n", argv[i]);
        return 1;
      }
      corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
      RunOne(corpus.back());
    }
  }
  if (corpus.empty()) {
    std::fprintf(stderr, "no corpus\n");
    return 1;
  }
  std::printf("%zu files replayed; %ld mutations, --seed=%lu\n", corpus.size(), runs, seed);
  std::fflush(stdout);
  std::mt19937 rng(static_cast<uint32_t>(seed));
  for (long i = 0; i < runs; ++i) {
    Input input = corpus[rng() % corpus.size()];
    Mutate(input, corpus, rng);
    RunOne(input);
  }
}
