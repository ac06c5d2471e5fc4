"""Generated from proto/kvcask/v1 by setup.py or Bazel."""
