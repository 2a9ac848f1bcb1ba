/* Attaches to a partition of vmbusd as a VMM does, and lists the devices that its guest would find.
 *
 *   cc -o attach-client attach-client.c $(pkg-config --cflags --libs vmbus-attach)
 *   ./attach-client /run/vmbusd/guest1.sock
 *
 * There is no guest: what its driver would post by hypercalls is posted from here, and what vmbusd answers is
 * printed instead of being put into the guest's message page. A real VMM hands over the memory that its guest
 * runs in, makes KVM write the doorbells' eventfds, and irqfds of the VPs' eventfds. */
#define _GNU_SOURCE
#include <semaphore.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vmbus-attach.h>

enum { MEMORY_BYTES = 16 << 20, MESSAGE_CONNECTION = 1, SINT = 2, SYNIC_MESSAGE_TYPE = 1 };
/* VMBus messages, as far as they are used here. [linux: include/linux/hyperv.h, enum
 * vmbus_channel_message_type] */
enum {
  OFFER_CHANNEL = 1,
  REQUEST_OFFERS = 3,
  ALL_OFFERS_DELIVERED = 4,
  INITIATE_CONTACT = 14,
  VERSION_RESPONSE = 15
};

struct vmm {
  struct vmbus_attach* attach;
  sem_t answered; /* to what was posted last */
};

static int doorbell_attach(void* context, uint32_t connection_id, int eventfd) {
  (void)context;
  printf("channel opened: signals on connection %u go to eventfd %d\n", connection_id, eventfd);
  return close(eventfd); /* a VMM keeps it, until doorbell_detach() */
}

static int doorbell_detach(void* context, uint32_t connection_id) {
  (void)context;
  (void)connection_id;
  return 0;
}

static void host_message(void* context, uint64_t cookie, uint32_t vp, uint32_t sint, uint32_t type,
                         const void* payload, size_t size) {
  struct vmm* vmm = context;
  const unsigned char* bytes = payload;
  uint32_t kind = 0;
  (void)vp, (void)sint, (void)type;
  if (size >= 8) memcpy(&kind, bytes, sizeof kind);
  if (kind == OFFER_CHANNEL && size >= 24) {
    uint32_t class_begin; /* a GUID, of which the first word tells enough */
    memcpy(&class_begin, bytes + 8, sizeof class_begin);
    printf("offered: %s (class %08x-...)\n",
           class_begin == 0xba6163d9   ? "a SCSI controller"
           : class_begin == 0xf8615163 ? "a NIC"
                                       : "an integration component",
           class_begin);
  }
  vmbus_attach_host_message_done(vmm->attach, cookie);
  if (kind == VERSION_RESPONSE) printf("the version is %s\n", size > 8 && bytes[8] ? "accepted" : "refused");
  if (kind == VERSION_RESPONSE || kind == ALL_OFFERS_DELIVERED) sem_post(&vmm->answered);
}

static void disconnected(void* context, const char* reason) {
  (void)context;
  fprintf(stderr, "vmbusd is gone: %s\n", reason);
  _exit(1);
}

static int failed(const struct vmm* vmm, const char* what, int result) {
  char words[128] = "";
  if (vmm->attach != NULL) vmbus_attach_error(vmm->attach, words, sizeof words);
  fprintf(stderr, "%s: %s (%s)\n", what, strerror(-result), words);
  return 1;
}

int main(int argc, char** argv) {
  static const struct vmbus_attach_events events = {.doorbell_attach = doorbell_attach,
                                                    .doorbell_detach = doorbell_detach,
                                                    .host_message = host_message,
                                                    .disconnected = disconnected};
  struct vmm vmm = {0};
  char why[128];
  if (argc != 2) return fprintf(stderr, "usage: attach-client SOCKET\n"), 2;
  sem_init(&vmm.answered, 0, 0);

  int result = vmbus_attach_connect(argv[1], 1, 0, &events, &vmm, &vmm.attach, why, sizeof why);
  if (result != 0) return fprintf(stderr, "cannot attach: %s\n", why), 1;

  const int memory = memfd_create("guest", MFD_CLOEXEC);
  if (memory < 0 || ftruncate(memory, MEMORY_BYTES) != 0) return perror("memory"), 1;
  result = vmbus_attach_add_memory(vmm.attach, 0, MEMORY_BYTES, memory, 0, 1);
  if (result != 0) return failed(&vmm, "memory", result);
  const int interrupt = eventfd(0, EFD_CLOEXEC);
  result = vmbus_attach_set_vp_interrupt(vmm.attach, 0, SINT, interrupt);
  if (result != 0) return failed(&vmm, "interrupt", result);
  result = vmbus_attach_set_synic_state(
      vmm.attach, 0,
      VMBUS_ATTACH_SYNIC_ENABLED | VMBUS_ATTACH_SYNIC_MESSAGE_PAGE | VMBUS_ATTACH_SYNIC_EVENT_PAGE, 0x1000,
      0x2000);
  if (result != 0) return failed(&vmm, "SynIC", result);

  /* type, padding, version 4.0, target VP, interrupt page or VTL and SINT, monitor pages */
  const uint32_t contact[10] = {INITIATE_CONTACT, 0, 4 << 16, 0, 0x3000, 0, 0x4000, 0, 0x5000, 0};
  result = vmbus_attach_post_guest_message(vmm.attach, 0, MESSAGE_CONNECTION, SYNIC_MESSAGE_TYPE, contact,
                                           sizeof contact);
  if (result != 0) return failed(&vmm, "contact", result);
  sem_wait(&vmm.answered);
  const uint32_t request[2] = {REQUEST_OFFERS, 0};
  result = vmbus_attach_post_guest_message(vmm.attach, 0, MESSAGE_CONNECTION, SYNIC_MESSAGE_TYPE, request,
                                           sizeof request);
  if (result != 0) return failed(&vmm, "offers", result);
  sem_wait(&vmm.answered);
  vmbus_attach_free(vmm.attach);
  return 0;
}
