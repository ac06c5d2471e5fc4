#include "server/store/disk_tier.h"

#include <absl/strings/str_cat.h>
#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/options.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "codec/base/crc32c.h"

namespace kvcask {
namespace {

absl::Status FromRocks(const rocksdb::Status& s, absl::string_view what) {
  if (s.ok()) return absl::OkStatus();
  const std::string text = absl::StrCat("disk tier: ", what, ": ", s.ToString());
  if (s.IsCorruption() || s.IsNotFound()) return absl::DataLossError(text);
  if (s.IsNoSpace()) return absl::ResourceExhaustedError(text);
  return absl::UnavailableError(text);
}

std::string ChunkKey(uint64_t id) {
  std::string key;
  for (int i = 7; i >= 0; --i) key.push_back(static_cast<char>(id >> (8 * i)));
  return key;
}

uint32_t ChunkChecksum(const std::string& key, absl::Span<const uint8_t> bytes) {
  const auto* k = reinterpret_cast<const uint8_t*>(key.data());
  return Crc32cExtend(Crc32c(absl::MakeSpan(k, key.size())), bytes);
}

class DiskTier final : public Tier {
 public:
  ~DiskTier() override {
    if (db_ == nullptr) return;
    for (auto* h : {chunks_, records_, default_}) {
      if (h != nullptr) db_->DestroyColumnFamilyHandle(h);
    }
    db_->Close();
  }

  absl::Status Open(const DiskTierOptions& o) {
    std::error_code error;
    std::filesystem::create_directories(o.path, error);
    if (error) {
      return absl::UnavailableError(
          absl::StrCat("disk tier: cannot make ", o.path, ": ", error.message()));
    }
    chmod(o.path.c_str(), 0700);

    rocksdb::DBOptions db;
    db.create_if_missing = true;
    db.create_missing_column_families = true;
    db.max_background_jobs = 2;
    db.info_log_level = rocksdb::WARN_LEVEL;
    db.keep_log_file_num = 4;
    db.max_total_wal_size = 256 << 20;
    db.bytes_per_sync = 4 << 20;      // dirty pages go out in the background, not at once
    db.wal_bytes_per_sync = 4 << 20;
    // A torn end of the log is what a kill leaves; anything else is corruption.
    db.wal_recovery_mode = rocksdb::WALRecoveryMode::kTolerateCorruptedTailRecords;
    db.paranoid_checks = true;

    rocksdb::BlockBasedTableOptions table;
    table.block_cache = rocksdb::NewLRUCache(o.cache_bytes);
    rocksdb::ColumnFamilyOptions records;
    records.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
    records.write_buffer_size = 16 << 20;
    records.compression = rocksdb::kNoCompression;
    rocksdb::ColumnFamilyOptions chunks = records;
    chunks.write_buffer_size = 64 << 20;
    chunks.enable_blob_files = true;
    chunks.min_blob_size = 512;
    chunks.blob_file_size = 256 << 20;
    chunks.enable_blob_garbage_collection = true;
    chunks.blob_garbage_collection_age_cutoff = 0.5;
    chunks.blob_garbage_collection_force_threshold = 0.5;

    std::vector<rocksdb::ColumnFamilyHandle*> handles;
    rocksdb::DB* opened = nullptr;
    const std::vector<rocksdb::ColumnFamilyDescriptor> families = {
        {rocksdb::kDefaultColumnFamilyName, records}, {"records", records}, {"chunks", chunks}};
    rocksdb::Status s = rocksdb::DB::Open(db, o.path, families, &handles, &opened);
    if (s.IsCorruption()) {
      // What was logged before the damage is worth having; that there was any is told.
      const std::string first = s.ToString();
      db.wal_recovery_mode = rocksdb::WALRecoveryMode::kPointInTimeRecovery;
      s = rocksdb::DB::Open(db, o.path, families, &handles, &opened);
      if (s.ok() && o.warning != nullptr) {
        *o.warning = absl::StrCat(o.path, ": its log is damaged, later commits are lost: ", first);
      }
    }
    if (!s.ok()) return FromRocks(s, absl::StrCat("opening ", o.path));
    db_.reset(opened);
    default_ = handles[0];
    records_ = handles[1];
    chunks_ = handles[2];
    return absl::OkStatus();
  }

  absl::Status WriteChunk(uint64_t id, absl::Span<const uint8_t> bytes) override {
    const std::string key = ChunkKey(id);
    const uint32_t crc = ChunkChecksum(key, bytes);
    const rocksdb::Slice parts[] = {
        {reinterpret_cast<const char*>(&crc), sizeof crc},
        {reinterpret_cast<const char*>(bytes.data()), bytes.size()}};
    const rocksdb::Slice name(key);
    rocksdb::WriteBatch batch;
    rocksdb::Status s =
        batch.Put(chunks_, rocksdb::SliceParts(&name, 1), rocksdb::SliceParts(parts, 2));
    if (!s.ok()) return FromRocks(s, "a chunk");
    return Write(&batch, false, "writing a chunk");
  }

  absl::StatusOr<UnsetBytes> ReadChunk(uint64_t id) const override {
    const std::string key = ChunkKey(id);
    rocksdb::ReadOptions read;
    read.fill_cache = false;
    rocksdb::PinnableSlice value;
    const rocksdb::Status s = db_->Get(read, chunks_, key, &value);
    if (!s.ok()) {
      // An I/O error is not yet a loss; a damaged file is.
      return FromRocks(s, absl::StrCat("reading chunk ", id));
    }
    uint32_t crc = 0;
    if (value.size() < sizeof crc) return absl::DataLossError("disk tier: a chunk without a CRC");
    std::memcpy(&crc, value.data(), sizeof crc);
    const auto* begin = reinterpret_cast<const uint8_t*>(value.data()) + sizeof crc;
    const auto bytes = absl::MakeSpan(begin, value.size() - sizeof crc);
    if (ChunkChecksum(key, bytes) != crc) {
      return absl::DataLossError(absl::StrCat("disk tier: chunk ", id, ": its CRC32C differs"));
    }
    return UnsetBytes(bytes.begin(), bytes.end());
  }

  absl::Status Apply(const Records& records, bool sync) override {
    rocksdb::WriteBatch batch;
    rocksdb::Status s;
    for (const auto& [key, value] : records.puts) {
      if (s.ok()) s = batch.Put(records_, key, value);
    }
    for (const std::string& key : records.deletes) {
      if (s.ok()) s = batch.Delete(records_, key);
    }
    for (uint64_t id : records.chunk_deletes) {
      if (s.ok()) s = batch.Delete(chunks_, ChunkKey(id));
    }
    if (!s.ok()) return FromRocks(s, "records");
    return Write(&batch, sync, "writing records");
  }

  absl::Status Sync() override { return FromRocks(db_->SyncWAL(), "syncing"); }

  absl::Status ForEach(absl::string_view prefix,
                       const std::function<absl::Status(absl::string_view, absl::string_view)>&
                           visit) const override {
    rocksdb::ReadOptions read;
    read.readahead_size = 2 << 20;
    std::unique_ptr<rocksdb::Iterator> it(db_->NewIterator(read, records_));
    const rocksdb::Slice begin(prefix.data(), prefix.size());
    for (it->Seek(begin); it->Valid() && it->key().starts_with(begin); it->Next()) {
      const absl::Status s = visit({it->key().data(), it->key().size()},
                                   {it->value().data(), it->value().size()});
      if (!s.ok()) return s;
    }
    return FromRocks(it->status(), "reading records");
  }

 private:
  absl::Status Write(rocksdb::WriteBatch* batch, bool sync, absl::string_view what) {
    rocksdb::WriteOptions write;
    write.sync = sync;
    rocksdb::Status s = db_->Write(write, batch);
    if (!s.ok()) {
      // After a full disk or a failed write the engine takes nothing until told to.
      if (db_->Resume().ok()) s = db_->Write(write, batch);
    }
    return FromRocks(s, what);
  }

  std::unique_ptr<rocksdb::DB> db_;
  rocksdb::ColumnFamilyHandle *default_ = nullptr, *records_ = nullptr, *chunks_ = nullptr;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Tier>> OpenDiskTier(const DiskTierOptions& options) {
  auto tier = std::make_unique<DiskTier>();
  if (absl::Status s = tier->Open(options); !s.ok()) return s;
  return std::unique_ptr<Tier>(std::move(tier));
}

}  // namespace kvcask
