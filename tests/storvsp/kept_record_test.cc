#include "storvsp/kept_record.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "base/assert.h"
#include "tests/catch.h"

namespace vmbusd::storvsp {
namespace {

UniqueFd empty_file() {
  UniqueFd fd(::memfd_create("record", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  VMBUSD_ASSERT(fd);
  return fd;
}

std::string_view text_of(const KeptRecord& record) {
  return {reinterpret_cast<const char*>(record.bytes().data()), record.bytes().size()};
}
int put(KeptRecord& record, std::string_view text) {
  return record.replace(std::as_bytes(std::span(text.data(), text.size())));
}
std::string text_in(const UniqueFd& file) {
  return std::string(text_of(KeptRecord(UniqueFd(::dup(file.get())))));
}

TEST_CASE("a record is what was put there last", "[storvsp]") {
  const UniqueFd file = empty_file();
  CHECK(KeptRecord::fits(file.get()));
  CHECK(text_in(file).empty());
  KeptRecord record(UniqueFd(::dup(file.get())));
  for (const std::string_view text : {"first", "the second", "", "fourth"}) {
    CHECK(put(record, text) == 0);
    CHECK(text_of(record) == text);
    CHECK(text_in(file) == text);
    CHECK(KeptRecord::fits(file.get()));
  }
  // Whoever reads it goes on where it ends.
  KeptRecord next(UniqueFd(::dup(file.get())));
  CHECK(put(next, "fifth") == 0);
  CHECK(text_in(file) == "fifth");
}

TEST_CASE("a record that is damaged leaves the one before it", "[storvsp]") {
  const UniqueFd file = empty_file();
  KeptRecord record(UniqueFd(::dup(file.get())));
  REQUIRE(put(record, "before") == 0);
  REQUIRE(put(record, "after") == 0);
  // The second is in the second slot, whose length, text or end is lost.
  const off_t place = GENERATE(4096, 4096 + 16, 4096 + 24, 4096 + 200);
  const char lost = 'x';
  REQUIRE(::pwrite(file.get(), &lost, 1, place) == 1);
  CHECK(text_in(file) == "before");
}

TEST_CASE("a file that ends inside a record leaves the one before it", "[storvsp]") {
  const UniqueFd file = empty_file();
  KeptRecord record(UniqueFd(::dup(file.get())));
  REQUIRE(put(record, "before") == 0);
  REQUIRE(put(record, "after") == 0);
  REQUIRE(::ftruncate(file.get(), 4096 + 100) == 0);
  CHECK(text_in(file) == "before");
}

TEST_CASE("a file of something else is no place for a record", "[storvsp]") {
  const UniqueFd file = empty_file();
  REQUIRE(::pwrite(file.get(), "#!/bin/sh\n", 10, 0) == 10);
  CHECK(!KeptRecord::fits(file.get()));
  REQUIRE(::ftruncate(file.get(), 3) == 0);
  CHECK(!KeptRecord::fits(file.get()));
  REQUIRE(::ftruncate(file.get(), 0) == 0);
  REQUIRE(::ftruncate(file.get(), 4096) == 0);  // as after a failure of the host
  CHECK(KeptRecord::fits(file.get()));
}

TEST_CASE("what cannot be kept is told", "[storvsp]") {
  KeptRecord nowhere;
  CHECK(put(nowhere, "x") == EOPNOTSUPP);
  CHECK(nowhere.bytes().empty());
  const UniqueFd file = empty_file();
  KeptRecord record(UniqueFd(::dup(file.get())));
  REQUIRE(put(record, "before") == 0);
  REQUIRE(::fcntl(file.get(), F_ADD_SEALS, F_SEAL_GROW) == 0);
  CHECK(put(record, "after") == EPERM);
  CHECK(text_of(record) == "before");
  CHECK(text_in(file) == "before");
}

}  // namespace
}  // namespace vmbusd::storvsp
