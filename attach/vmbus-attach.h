/* libvmbus-attach: how a VMM hands a guest to vmbusd, for programs in C and in languages that call C.
 *
 * docs/attach-protocol.md says what the calls mean to the guest. Link with -lvmbus-attach (pkg-config
 * vmbus-attach).
 *
 * Every int result is 0 or a negative errno value: -ENOTCONN where the connection is over, -ENOBUFS where a
 * bound is reached, -EINVAL where an argument or a field is out of its range, -EPROTO where vmbusd broke the
 * protocol, -ENOTSUP where the versions differ, -EBUSY in a state that does not allow it; others are what the
 * system said.
 */
#ifndef VMBUS_ATTACH_H
#define VMBUS_ATTACH_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* One connection. */
struct vmbus_attach;

/* What vmbusd asks of a VMM. Called on a thread of the library's, one at a time, perhaps before
 * vmbus_attach_connect() has returned. They may call vmbus_attach_host_message_done() and
 * vmbus_attach_post_guest_message(), and nothing else of the library, as that would wait for this thread. */
struct vmbus_attach_events {
  /* What the guest signals by HvSignalEvent on `connection_id` is to write 1 to `eventfd` (KVM:
   * KVM_HYPERV_EVENTFD), which is the VMM's to close. 0 or an errno value. */
  int (*doorbell_attach)(void* context, uint32_t connection_id, int eventfd);
  /* 0 or an errno value. */
  int (*doorbell_detach)(void* context, uint32_t connection_id);
  /* A message for the VP's SINT slot. When it stands there, or was dropped because the guest starts over, the
   * VMM calls vmbus_attach_host_message_done() with the cookie, from any thread. `payload` is gone when this
   * returns. At most 16 messages are outstanding. */
  void (*host_message)(void* context, uint64_t cookie, uint32_t vp, uint32_t sint, uint32_t message_type,
                       const void* payload, size_t payload_size);
  /* Raise this event flag; only with VMBUS_ATTACH_SIGNAL_BY_MESSAGE, else it may be NULL. */
  void (*signal_event)(void* context, uint32_t vp, uint32_t sint, uint32_t flag);
  /* Keep `file`, in place of one before, for vmbus_attach_take_up(); it is the VMM's to close. `taken_up` is
   * not 0 where vmbusd has taken the guest up, and has acted on `guest_messages` of its messages, counted
   * over all connections since the first. Only with VMBUS_ATTACH_TAKE_UP, else it may be NULL. */
  void (*recovery_area)(void* context, int file, int taken_up, uint64_t guest_messages);
  /* The connection is over, other than by vmbus_attach_close(). No other event follows. */
  void (*disconnected)(void* context, const char* reason);
};

/* Features. Event flag pages are not guest memory, so events are raised by signal_event(). */
#define VMBUS_ATTACH_SIGNAL_BY_MESSAGE (UINT64_C(1) << 0)
/* The VMM keeps what another vmbusd needs to take up its guest when this one dies or is restarted. */
#define VMBUS_ATTACH_TAKE_UP (UINT64_C(1) << 1)

/* Connects to a partition's socket and says that the guest has `vp_count` VPs, 1 to 64, numbered from 0.
 * `events` is copied; `context` is handed to its functions. Where it fails, the reason stands in `error` (of
 * `error_size` bytes, may be NULL), and *attach is NULL. */
int vmbus_attach_connect(const char* socket_path, uint32_t vp_count, uint64_t features,
                         const struct vmbus_attach_events* events, void* context,
                         struct vmbus_attach** attach, char* error, size_t error_size);
/* Ends the connection at once; calls under way fail with -ENOTCONN. Any thread. */
void vmbus_attach_close(struct vmbus_attach* attach);
/* Ends the connection and frees it, when the library's thread has returned from its last event. Any thread
 * but that; NULL does nothing. */
void vmbus_attach_free(struct vmbus_attach* attach);

/* The features that both sides have. */
uint64_t vmbus_attach_features(const struct vmbus_attach* attach);
/* Not 0 where vmbusd serves HvPostMessage on this connection id; the guest is told
 * HV_STATUS_INVALID_CONNECTION_ID on all others. */
int vmbus_attach_serves(const struct vmbus_attach* attach, uint32_t connection_id);
/* vmbusd's own words on the last call that it refused, empty where it gave none. */
void vmbus_attach_error(const struct vmbus_attach* attach, char* error, size_t error_size);

/* The following wait for vmbusd's answer. Any thread but the library's own. */

/* Hands over guest memory: `size` bytes at guest physical address `gpa`, which are at `offset` of a
 * descriptor that can be mapped shared (memfd, hugetlbfs). All three page aligned. The descriptor stays the
 * caller's. */
int vmbus_attach_add_memory(struct vmbus_attach* attach, uint64_t gpa, uint64_t size, int fd, uint64_t offset,
                            int writable);
/* Returns when nothing of vmbusd touches the region any more. */
int vmbus_attach_remove_memory(struct vmbus_attach* attach, uint64_t gpa, uint64_t size);
/* Writing 1 to `eventfd` raises (vp, sint), SINT 2 that is. vmbusd sets O_NONBLOCK on it; it stays the
 * caller's. */
int vmbus_attach_set_vp_interrupt(struct vmbus_attach* attach, uint32_t vp, uint32_t sint, int eventfd);
/* The guest has changed its SynIC: flags and the pages' guest physical addresses. */
#define VMBUS_ATTACH_SYNIC_ENABLED (1u << 0)
#define VMBUS_ATTACH_SYNIC_MESSAGE_PAGE (1u << 1)
#define VMBUS_ATTACH_SYNIC_EVENT_PAGE (1u << 2)
int vmbus_attach_set_synic_state(struct vmbus_attach* attach, uint32_t vp, uint32_t flags,
                                 uint64_t message_page_gpa, uint64_t event_page_gpa);
/* The guest starts over; its memory stays. Returns when nothing of it is in use. */
int vmbus_attach_reset(struct vmbus_attach* attach);

/* With VMBUS_ATTACH_TAKE_UP, on a connection to a vmbusd that comes after another, before the guest's first
 * message: gives it each doorbell that the other attached and did not detach, then has it take the guest up
 * by the last recovery_area()'s file. What comes of that is told by recovery_area() or disconnected().
 * Descriptors stay the caller's. */
int vmbus_attach_keep_doorbell(struct vmbus_attach* attach, uint32_t connection_id, int eventfd);
int vmbus_attach_take_up(struct vmbus_attach* attach, int recovery_area);

/* These do not wait. Any thread. */

/* Forwards a guest's HvPostMessage of at most 240 bytes. -ENOBUFS: the guest is to be told
 * HV_STATUS_INSUFFICIENT_BUFFERS. */
int vmbus_attach_post_guest_message(struct vmbus_attach* attach, uint32_t vp, uint32_t connection_id,
                                    uint32_t message_type, const void* payload, size_t payload_size);
/* Once for each host_message(). */
void vmbus_attach_host_message_done(struct vmbus_attach* attach, uint64_t cookie);

#ifdef __cplusplus
}
#endif

#endif
