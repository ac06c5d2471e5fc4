#include "server/store/prefix_index.h"

namespace kvcask {

void PrefixIndex::Add(const Page& page, Link* link) {
  Link*& first = first_[Key(page.ns, page.form, page.prefix_id)];
  link->previous = nullptr;
  link->next = first;
  if (first != nullptr) first->previous = link;
  first = link;
}

void PrefixIndex::Remove(const Page& page, Link* link) {
  if (link->next != nullptr) link->next->previous = link->previous;
  if (link->previous != nullptr) {
    link->previous->next = link->next;
  } else if (link->next != nullptr) {
    first_[Key(page.ns, page.form, page.prefix_id)] = link->next;
  } else {
    first_.erase(Key(page.ns, page.form, page.prefix_id));
  }
}

const PrefixIndex::Link* PrefixIndex::FindLongest(uint64_t ns, uint32_t form,
                                                  absl::Span<const Digest> prefix_ids) const {
  const Link* best = nullptr;
  size_t held = 0, beyond = prefix_ids.size() + 1;  // the answer lies in [held, beyond)
  while (beyond - held > 1) {
    const size_t pages = held + (beyond - held) / 2;
    const auto it = first_.find(Key(ns, form, prefix_ids[pages - 1]));
    if (it != first_.end() && it->second->page == pages - 1) {
      best = it->second;
      held = pages;
    } else {
      beyond = pages;
    }
  }
  return best;
}

}  // namespace kvcask
