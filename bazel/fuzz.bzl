"""fuzz_test: one fuzz target in two forms.

A file X_fuzz.cc defines LLVMFuzzerTestOneInput. As a test it replays its corpus and
then a few thousand seeded mutations of it, under whatever compiler and sanitizers the
build has (codec/testing/fuzz_driver.cc). tools/fuzz builds the same file with clang's
libFuzzer, address and undefined-behaviour sanitizers, for as long as one likes.
"""

def fuzz_test(name, srcs, corpus, deps, runs = 4000):
    native.cc_test(
        name = name,
        size = "small",
        srcs = srcs,
        args = ["--runs=%d" % runs] + ["$(locations %s)" % c for c in corpus],
        data = corpus,
        deps = deps + ["//codec/testing:fuzz_driver"],
    )
