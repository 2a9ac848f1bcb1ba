#include "vmbus/server.h"

#include "vmbus/server_core.h"

namespace vmbusd::vmbus {

static_assert(Server::signal_connection(0) == kMessageSint << 12);
static_assert(Server::kMessageConnections[0] == kMessageConnectionBelow5 &&
              Server::kMessageConnections[1] == kMessageConnectionFrom5);

struct Server::Impl {
  ServerCore core;
};

Server::Server(ServerEvents& events, std::uint32_t vp_count, LogScope& log, const ServerLimits& limits)
    : impl_(new Impl{{events, vp_count, log, limits}}) {}
Server::~Server() = default;

void Server::guest_message(std::uint32_t connection_id, std::span<const std::byte> message) {
  impl_->core.guest_message(connection_id, message);
}
Result<Relid> Server::offer(const Offer& offer) {
  return impl_->core.offer(offer);
}
void Server::rescind(Relid relid) {
  impl_->core.rescind(relid);
}
void Server::close_rescinded(Relid relid) {
  impl_->core.close_rescinded(relid);
}
void Server::open_done(Relid relid, std::uint32_t status) {
  impl_->core.open_done(relid, status);
}
void Server::close_done(Relid relid) {
  impl_->core.close_done(relid);
}
void Server::retarget_done(Relid relid, std::uint32_t status) {
  impl_->core.retarget_done(relid, status);
}
void Server::gpadl_released(Relid relid, GpadlId gpadl) {
  impl_->core.gpadl_released(relid, gpadl);
}
bool Server::holds_pages(Gpn first, std::uint64_t count) const {
  return impl_->core.holds_pages(first, count);
}

std::shared_ptr<const Gpadl> Server::find_gpadl(Relid relid, GpadlId gpadl) const {
  return impl_->core.find_gpadl(relid, gpadl);
}
std::vector<std::shared_ptr<const Gpadl>> Server::gpadls_of(Relid relid) const {
  return impl_->core.gpadls_of(relid);
}

void Server::reset() {
  impl_->core.reset();
}
bool Server::idle() const {
  return impl_->core.idle();
}
bool Server::settled() const {
  return impl_->core.settled();
}
void Server::save(SerialWriter& out) const {
  impl_->core.save(out);
}
Result<void> Server::restore(SerialReader& in, const std::function<Result<Offer>(Relid)>& offer_of) {
  return impl_->core.restore(in, offer_of);
}
Result<void> Server::reopen(Relid relid) {
  return impl_->core.reopen(relid);
}
bool Server::awaits_reopen(Relid relid) const {
  return impl_->core.awaits_reopen(relid);
}
std::uint32_t Server::version() const {
  return static_cast<std::uint32_t>(impl_->core.version());
}

}  // namespace vmbusd::vmbus
