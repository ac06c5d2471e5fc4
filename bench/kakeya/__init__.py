"""Kakeya codecs on real caches: quality, streams, depth, stages."""
