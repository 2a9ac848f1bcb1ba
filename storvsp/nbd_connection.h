// The connection to an NBD server behind a disk: operations of all its queues over one socket.
#pragma once

#include <array>
#include <atomic>
#include <boost/intrusive/list.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "base/fd.h"
#include "base/log.h"
#include "io/worker.h"
#include "storvsp/disk.h"
#include "storvsp/nbd_export.h"

namespace vmbusd::storvsp {

class NbdConnection;

// One operation on its way from a queue's worker to the connection's and back; which of the two has it, its
// place says. Owned by the queue.
class NbdOperation final : public io::Task {
 public:
  // Gets operations back, on the queue's worker.
  class Owner {
   public:
    virtual void operation_done(NbdOperation& operation) noexcept = 0;

   protected:
    ~Owner() = default;
  };

  // The queue's: set before NbdConnection::submit().
  NbdConnection* connection = nullptr;
  Owner* owner = nullptr;
  io::Worker* worker = nullptr;  // the queue's
  DiskRequest* request = nullptr;
  DiskIo io;                  // not kKeep
  std::byte* data = nullptr;  // kRead, kWrite: io.length bytes
  std::byte* bounce = nullptr;
  // Not to be begun any more; NbdConnection::aborted() says that there are such. Relaxed: stands for itself.
  std::atomic<bool> aborted{false};

  // The connection's answer.
  int error = 0;  // positive errno
  DiskExtent extent;

  void run() noexcept override;

 private:
  friend class NbdConnection;
  using Hook = bi::list_member_hook<bi::link_mode<bi::safe_link>>;

  Hook hook_;  // in one of the connection's lists
  bool over_ = false;
  std::uint64_t bytes_done_ = 0;
  std::uint32_t bytes_asked_ = 0;       // of what the server has now
  std::uint32_t connections_lost_ = 0;  // with this in flight
  bool made_durable_ = false;           // the flush behind a write is under way
};

// Lives on the worker of the first queue, its home; the other queues' workers send their operations there and
// get them back by messages, so that nobody takes a lock for I/O. Others connect sockets: `wanted` asks for
// one when there is something to do and no connection, and connect() gives it.
//
//   submit -> held_ -> issued_ -> answered_ -> over_ -> Owner::operation_done
//               ^         |
//               +---------+   the connection is lost: issued again on the next, from its beginning
//
// What is held for longer than the reconnect delay fails with ETIMEDOUT, and so does what comes before there
// is a connection again. While it has nothing to do it has nothing in flight in its home's io_uring, so
// queues need not wait for it.
class NbdConnection final : public std::enable_shared_from_this<NbdConnection>, private io::Timer {
 public:
  struct Options {
    std::string export_name;
    NbdExport expected;  // a server that offers less is not used
    std::chrono::seconds reconnect_delay{30};
    std::string subject;  // of the log
    // There is need of a socket; one request, one socket. Any I/O worker.
    std::function<void()> wanted;
  };

  [[nodiscard]] static std::shared_ptr<NbdConnection> make(Options options) {
    return std::shared_ptr<NbdConnection>(new NbdConnection(std::move(options)));
  }
  ~NbdConnection();  // any thread, with no operation under way
  NbdConnection(const NbdConnection&) = delete;
  NbdConnection& operator=(const NbdConnection&) = delete;

  [[nodiscard]] const NbdExport& expected() const { return options_.expected; }
  // A socket to the server, connected, on which nothing was said. Any thread; the home's worker must be there
  // while this is called.
  void connect(UniqueFd socket);

  // The queue's worker. A queue joins before it submits.
  void join(io::Worker& worker);
  void submit(NbdOperation& operation) noexcept;
  // Some operations have been marked as aborted: those that the server does not have are over.
  void aborted() noexcept;

 private:
  friend class NbdOperation;
  using List =
      bi::list<NbdOperation, bi::member_hook<NbdOperation, NbdOperation::Hook, &NbdOperation::hook_>>;

  // Waits for the socket to become ready, once.
  class Poll final : public io::IoOp {
   public:
    explicit Poll(NbdConnection& connection, unsigned events) : connection_(connection), events_(events) {}
    void arm(int fd);
    void cancel();
    [[nodiscard]] bool armed() const { return armed_; }
    void complete(std::int32_t result, std::uint32_t cqe_flags) noexcept override;

   private:
    NbdConnection& connection_;
    const unsigned events_;
    bool armed_ = false;
    bool cancelled_ = false;
  };

  explicit NbdConnection(Options options);

  // All below on the home's thread.
  void take(NbdOperation& operation) noexcept;
  void step();
  void end_aborted();
  void begin();
  void greet();
  void issue_held();
  void issue(NbdOperation& operation);
  [[nodiscard]] std::int64_t ask(NbdOperation& operation);
  void take_answers();
  void answer(NbdOperation& operation);
  [[nodiscard]] bool goes_on(NbdOperation& operation) const;
  void lose(const char* reason);
  void fail_held();
  void give_back();
  void wait();
  void readable();
  void writable();
  void expired() noexcept override { step(); }
  [[nodiscard]] bool polls() const { return read_poll_.armed() || write_poll_.armed(); }
  [[nodiscard]] bool at_work() const { return !held_.empty() || !issued_.empty(); }
  [[nodiscard]] io::Clock::time_point due() const;

  const Options options_;
  const LogScope log_;
  std::atomic<io::Worker*> home_{nullptr};  // set once

  std::mutex offered_mutex_;
  UniqueFd offered_;

  NbdHandle handle_;
  int fd_ = -1;         // the handle's
  bool ready_ = false;  // its handshake is over
  Poll read_poll_;
  Poll write_poll_;
  bool wanted_ = false;     // asked for, and not offered yet
  bool rests_ = true;       // a socket that is offered was not needed when it came
  bool rested_ = false;     // the one in use; the server may have closed it meanwhile
  bool was_ready_ = false;  // ever
  std::optional<io::Clock::time_point> lost_since_;  // since when there has been need
  io::Clock::time_point greeting_since_;
  io::Clock::time_point another_until_;  // after one that had rested too long
  bool failing_ = false;                 // the operator has been told
  std::string complaint_;                // logged last, since there was a connection
  List held_;
  List issued_;
  List answered_;
  List over_;
  bool stepping_ = false;
  bool again_ = false;
  bool looks_for_aborted_ = false;
  bool short_of_entries_ = false;
};

}  // namespace vmbusd::storvsp
