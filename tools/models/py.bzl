"""A Python test of code that uses the model tools."""

def model_py_test(name, deps, packages = ["torch", "gguf", "safetensors", "tokenizers"], data = [], **kwargs):
    """Runs NAME.py (unittest) with the repository root on the path.

    Args:
      name: the test; its source is NAME.py in this package.
      deps: filegroups of Python sources that it imports.
      packages: what it needs from outside; without them it says SKIPPED and passes.
      data: further files.
      **kwargs: of sh_test.
    """
    module = (native.package_name() + "/" + name).replace("/", ".")
    native.sh_test(
        name = name,
        srcs = ["//tools/models:py_test.sh"],
        args = [module] + packages,
        data = data + deps + [name + ".py"],
        **kwargs
    )
