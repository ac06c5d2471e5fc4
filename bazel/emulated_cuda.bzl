"""emulated_cuda_library: .cu sources compiled by the host's compiler against device/emulation."""

def emulated_cuda_library(name, srcs, deps = [], **kwargs):
    sources = []
    for src in srcs:
        out = "%s/%s.cc" % (name, src)
        native.genrule(
            name = "%s_%s" % (name, src),
            srcs = [src],
            outs = [out],
            cmd = "cp $< $@",
        )
        sources.append(out)
    native.cc_library(
        name = name,
        testonly = True,
        srcs = sources,
        copts = ["-O2", "-Wno-unknown-pragmas", "-Wno-unused-parameter"],
        deps = deps + ["//device:launch", "//device/emulation"],
        **kwargs
    )
