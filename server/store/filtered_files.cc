#include "server/store/filtered_files.h"

#include <utility>

namespace kvcask {
namespace {

using rocksdb::DataVerificationInfo;
using rocksdb::FileOptions;
using rocksdb::FSDirectory;
using rocksdb::FSWritableFile;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using rocksdb::Slice;

using Filter = std::shared_ptr<const WriteFilter>;

class FilteredFile : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  FilteredFile(std::unique_ptr<FSWritableFile>&& file, std::string path, Filter filter)
      : FSWritableFileOwnerWrapper(std::move(file)),
        path_(std::move(path)),
        filter_(std::move(filter)) {}

  IOStatus Append(const Slice& data, const IOOptions& o, IODebugContext* d) override {
    return (*filter_)(path_, [&] { return target()->Append(data, o, d); });
  }
  IOStatus Append(const Slice& data, const IOOptions& o, const DataVerificationInfo& v,
                  IODebugContext* d) override {
    return (*filter_)(path_, [&] { return target()->Append(data, o, v, d); });
  }
  IOStatus PositionedAppend(const Slice& data, uint64_t at, const IOOptions& o,
                            IODebugContext* d) override {
    return (*filter_)(path_, [&] { return target()->PositionedAppend(data, at, o, d); });
  }
  IOStatus PositionedAppend(const Slice& data, uint64_t at, const IOOptions& o,
                            const DataVerificationInfo& v, IODebugContext* d) override {
    return (*filter_)(path_, [&] { return target()->PositionedAppend(data, at, o, v, d); });
  }
  IOStatus Truncate(uint64_t size, const IOOptions& o, IODebugContext* d) override {
    return (*filter_)(path_, [&] { return target()->Truncate(size, o, d); });
  }
  IOStatus Close(const IOOptions& o, IODebugContext* d) override {
    return (*filter_)(path_, [&] { return target()->Close(o, d); });
  }
  IOStatus Flush(const IOOptions& o, IODebugContext* d) override {
    return (*filter_)(path_, [&] { return target()->Flush(o, d); });
  }
  IOStatus Sync(const IOOptions& o, IODebugContext* d) override {
    return (*filter_)(path_, [&] { return target()->Sync(o, d); });
  }
  IOStatus Fsync(const IOOptions& o, IODebugContext* d) override {
    return (*filter_)(path_, [&] { return target()->Fsync(o, d); });
  }
  IOStatus RangeSync(uint64_t at, uint64_t n, const IOOptions& o, IODebugContext* d) override {
    return (*filter_)(path_, [&] { return target()->RangeSync(at, n, o, d); });
  }

 private:
  const std::string path_;
  const Filter filter_;
};

class FilteredFolder : public rocksdb::FSDirectoryWrapper {
 public:
  FilteredFolder(std::unique_ptr<FSDirectory>&& folder, std::string path, Filter filter)
      : FSDirectoryWrapper(std::move(folder)), path_(std::move(path)), filter_(std::move(filter)) {}

  IOStatus Fsync(const IOOptions& o, IODebugContext* d) override {
    return (*filter_)(path_, [&] { return FSDirectoryWrapper::Fsync(o, d); });
  }
  IOStatus FsyncWithDirOptions(const IOOptions& o, IODebugContext* d,
                               const rocksdb::DirFsyncOptions& what) override {
    return (*filter_)(path_, [&] { return FSDirectoryWrapper::FsyncWithDirOptions(o, d, what); });
  }

 private:
  const std::string path_;
  const Filter filter_;
};

class FilteredFileSystem : public rocksdb::FileSystemWrapper {
 public:
  FilteredFileSystem(std::shared_ptr<rocksdb::FileSystem> base, WriteFilter filter)
      : FileSystemWrapper(std::move(base)),
        filter_(std::make_shared<const WriteFilter>(std::move(filter))) {}

  const char* Name() const override { return "kvcask.FilteredFileSystem"; }

  IOStatus NewWritableFile(const std::string& path, const FileOptions& o,
                           std::unique_ptr<FSWritableFile>* file, IODebugContext* d) override {
    return Wrap(path, file, [&] { return target()->NewWritableFile(path, o, file, d); });
  }
  IOStatus ReopenWritableFile(const std::string& path, const FileOptions& o,
                              std::unique_ptr<FSWritableFile>* file, IODebugContext* d) override {
    return Wrap(path, file, [&] { return target()->ReopenWritableFile(path, o, file, d); });
  }
  IOStatus ReuseWritableFile(const std::string& path, const std::string& old, const FileOptions& o,
                             std::unique_ptr<FSWritableFile>* file, IODebugContext* d) override {
    return Wrap(path, file, [&] { return target()->ReuseWritableFile(path, old, o, file, d); });
  }
  IOStatus NewDirectory(const std::string& path, const IOOptions& o,
                        std::unique_ptr<FSDirectory>* folder, IODebugContext* d) override {
    const IOStatus s = target()->NewDirectory(path, o, folder, d);
    if (s.ok()) {
      *folder = std::make_unique<FilteredFolder>(std::move(*folder), path, filter_);
    }
    return s;
  }
  IOStatus RenameFile(const std::string& from, const std::string& to, const IOOptions& o,
                      IODebugContext* d) override {
    return (*filter_)(to, [&] { return target()->RenameFile(from, to, o, d); });
  }

 private:
  template <typename Make>
  IOStatus Wrap(const std::string& path, std::unique_ptr<FSWritableFile>* file, Make make) {
    const IOStatus s = (*filter_)(path, make);
    if (s.ok()) *file = std::make_unique<FilteredFile>(std::move(*file), path, filter_);
    return s;
  }

  const Filter filter_;
};

}  // namespace

std::shared_ptr<rocksdb::FileSystem> FilterWrites(std::shared_ptr<rocksdb::FileSystem> base,
                                                  WriteFilter filter) {
  return std::make_shared<FilteredFileSystem>(std::move(base), std::move(filter));
}

}  // namespace kvcask
