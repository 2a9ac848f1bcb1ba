// A thread for system calls that io_uring does not have and that may take their time.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace vmbusd::storvsp {

// One call after the other. The thread is made for the first call. Calls are rare, so they may allocate.
class BlockingCalls {
 public:
  BlockingCalls() = default;
  ~BlockingCalls();  // makes the calls that are left
  BlockingCalls(const BlockingCalls&) = delete;
  BlockingCalls& operator=(const BlockingCalls&) = delete;

  // Any thread. `call` must bring its outcome back by itself, as with io::Worker::post.
  void post(std::function<void()> call);

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> calls_;
  bool ending_ = false;
  std::thread thread_;
};

}  // namespace vmbusd::storvsp
