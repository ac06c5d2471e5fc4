"""@sys: Debian's C++ libraries as Bazel targets, found with pkg-config.

Headers are in /usr/include, which the C++ toolchain treats as built in, so the
targets carry link flags only. Each gets two forms, chosen by //bazel:portable:
  shared  -lX as pkg-config prints it
  static  -l:libX.a wherever the archive exists, all in one --start-group
The package versions are written into the repository, so an upgrade of a
package changes the action keys and rebuilds what uses it.
"""

# target -> (pkg-config modules, Debian package, further link flags). A package
# without a .pc file (header-only CLI11 and nlohmann have one) is not listed.
_DEPS = {
    "absl": (["absl_strings", "absl_str_format", "absl_status", "absl_statusor", "absl_flat_hash_map", "absl_inlined_vector", "absl_span", "absl_synchronization", "absl_time"], "libabsl-dev", []),
    "benchmark": (["benchmark"], "libbenchmark-dev", []),
    "cli11": (["CLI11"], "libcli11-dev", []),
    "crypto": (["libcrypto"], "libssl-dev", []),
    "eigen": (["eigen3"], "libeigen3-dev", []),
    "grpc++": (["grpc++"], "libgrpc++-dev", ["-lgrpc++_reflection"]),
    "gtest": (["gtest", "gmock"], "libgtest-dev libgmock-dev", []),
    "gtest_main": (["gmock", "gtest_main"], "libgtest-dev libgmock-dev", []),
    "highway": (["libhwy"], "libhwy-dev", []),
    "hiredis": (["hiredis"], "libhiredis-dev", []),
    "isal": (["libisal"], "libisal-dev", []),
    "json": (["nlohmann_json"], "nlohmann-json3-dev", []),
    "lz4": (["liblz4"], "liblz4-dev", []),
    "openblas": (["openblas"], "libopenblas-dev", []),
    "prometheus": (["prometheus-cpp-pull", "prometheus-cpp-core"], "prometheus-cpp-dev", []),
    "protobuf": (["protobuf"], "libprotobuf-dev", []),
    "rocksdb": (["rocksdb"], "librocksdb-dev", []),
    "spdlog": (["spdlog"], "libspdlog-dev", []),
    "zstd": (["libzstd"], "libzstd-dev", []),
    "yaml": (["yaml-cpp"], "libyaml-cpp-dev", []),
}

_TOOLS = {
    "protoc": ("protoc", "protobuf-compiler"),
    "grpc_cpp_plugin": ("grpc_cpp_plugin", "protobuf-compiler-grpc"),
}

_APT = "apt-get install -y --no-install-recommends bazel-bootstrap pkg-config "

def _run(rctx, args):
    r = rctx.execute(args)
    return r.stdout.strip() if r.return_code == 0 else None

def _unique(seq):
    return {x: None for x in seq}.keys()

def _static(rctx, libs):
    libdir = _run(rctx, ["gcc", "-print-multiarch"])
    out = []
    for lib in libs:
        if not lib.startswith("-l"):
            continue
        archive = "lib%s.a" % lib[2:]
        if lib[2:] in ("dl", "rt", "pthread", "m", "atomic"):
            out.append(lib)  # glibc / libgcc stay as they are
        elif rctx.path("/usr/lib/%s/%s" % (libdir, archive)).exists:
            out.append("-l:" + archive)
        else:
            out.append(lib)  # Debian ships no archive (prometheus-cpp, benchmark)
    return out

def _system_deps_impl(rctx):
    missing = {}
    build = [
        'package(default_visibility = ["//visibility:public"])',
        'exports_files(["protoc", "grpc_cpp_plugin"])',
    ]
    for name, (mods, deb, extra) in _DEPS.items():
        version = _run(rctx, ["pkg-config", "--modversion"] + mods)
        if version == None:
            missing[deb] = True
            continue
        shared = _unique(_run(rctx, ["pkg-config", "--libs"] + mods).split(" ") + extra)
        static = _unique(_static(rctx, _run(rctx, ["pkg-config", "--static", "--libs"] + mods).split(" ") + extra))
        shared = [f for f in shared if f.startswith("-l")]
        build.append("""
cc_library(
    name = "{name}",
    defines = ["SYS_{id}_VERSION={version}"],
    linkopts = select({{
        "@{main}//bazel:portable_enabled": {static},
        "//conditions:default": {shared},
    }}),
)""".format(
            name = name,
            id = name.upper().replace("+", "X"),
            main = rctx.attr.main,
            version = version.replace("\n", "_").replace(" ", ""),
            shared = ["-Wl,--push-state,--as-needed"] + shared + ["-pthread", "-Wl,--pop-state"],
            static = ["-Wl,--push-state,--as-needed,--start-group"] + static + ["-Wl,--end-group,--pop-state", "-pthread"],
        ))
    for name, (tool, deb) in _TOOLS.items():
        path = rctx.which(tool)
        if path == None:
            missing[deb] = True
        else:
            rctx.symlink(path, name)
    if missing:
        fail("missing system packages; run: " + _APT + " ".join(missing.keys()))
    rctx.file("BUILD.bazel", "\n".join(build))

system_deps = repository_rule(
    implementation = _system_deps_impl,
    attrs = {"main": attr.string(default = "kvcask")},
    local = True,  # look again when the Bazel server starts
    environ = ["PATH", "PKG_CONFIG_PATH"],
)
