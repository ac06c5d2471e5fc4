// A file system of the engine in which every write goes through a function: it may look at how
// the write ended, hold it up or fail it.
//
// Writes are all that makes or changes files: creating, appending, flushing, syncing, closing,
// renaming, syncing a folder. Reads and removals go as they were.
//
// Thread-safe where the filter is.
#pragma once

#include <rocksdb/file_system.h>

#include <functional>
#include <memory>
#include <string>

namespace kvcask {

// `path` of the file or folder; `write` does it, once, and is called or not.
using WriteFilter = std::function<rocksdb::IOStatus(
    const std::string& path, const std::function<rocksdb::IOStatus()>& write)>;

std::shared_ptr<rocksdb::FileSystem> FilterWrites(std::shared_ptr<rocksdb::FileSystem> base,
                                                  WriteFilter filter);

}  // namespace kvcask
