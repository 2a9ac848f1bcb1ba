// The byte-by-byte examples of the protocol reference, in the order in which a guest lives them.
#include "tests/catch.h"
#include "tests/vmbus/surroundings.h"

namespace vmbusd::vmbus {

TEST_CASE("a NIC is negotiated, offered and opened byte by byte", "[vmbus]") {
  Surroundings s;
  Offer filler = scsi();
  for (std::uint8_t i = 1; i <= 4; ++i) {  // the example's NIC has relid 5
    filler.instance.bytes[15] = i;
    REQUIRE(s.server.offer(filler).has_value());
  }
  Offer nic;
  nic.interface_type = kClassNetwork;
  nic.instance = Guid::literal("11223344-5566-7788-99aa-bbccddeeff00");
  REQUIRE(s.server.offer(nic).value() == 5);

  s.server.guest_message(4, hex("0e 00 00 00 00 00 00 00  03 00 05 00 00 00 00 00"
                                "02 00 00 00 00 00 00 00  00 10 10 00 00 00 00 00"
                                "00 20 10 00 00 00 00 00"));
  CHECK(s.last_message == hex("0f 00 00 00 00 00 00 00  01 00 00 00 04 00 00 00"));
  CHECK(s.server.version() == 0x00050003);
  s.take();

  s.post(hex("03 00 00 00 00 00 00 00"));
  CHECK(s.take() == Seen{"OFFERCHANNEL 1", "OFFERCHANNEL 2", "OFFERCHANNEL 3", "OFFERCHANNEL 4",
                         "OFFERCHANNEL 5", "ALLOFFERS_DELIVERED"});
  CHECK(s.last_message == hex("04 00 00 00 00 00 00 00"));

  s.post(
      hex("08 00 00 00 00 00 00 00  05 00 00 00 10 1e 0e 00"
          "28 00 01 00 00 40 00 00  00 00 00 00 00 10 00 00"
          "00 00 00 00 01 10 00 00  00 00 00 00 02 10 00 00"
          "00 00 00 00 03 10 00 00  00 00 00 00"));
  CHECK(s.last_message == hex("0a 00 00 00 00 00 00 00 05 00 00 00 10 1e 0e 00 00 00 00 00"));

  Bytes open = hex("05 00 00 00 00 00 00 00 05 00 00 00 05 00 00 00 10 1e 0e 00 00 00 00 00 02 00 00 00");
  open.resize(148);
  s.post(open);
  CHECK(s.last_message == hex("06 00 00 00 00 00 00 00 05 00 00 00 05 00 00 00 00 00 00 00"));
  CHECK(s.last_open.ring->ranges.at(0).pages == std::vector<Gpn>{0x1000, 0x1001, 0x1002, 0x1003});
  CHECK(s.last_open.incoming_pages == 2);
  CHECK(s.last_open.target_vp == 0);
  CHECK(s.last_open.event_flag == 5);
  CHECK(s.last_open.connection_id == 0x2005);
  CHECK(s.last_open.interrupt_page == 0);
}

TEST_CASE("an offer stands on the wire byte by byte", "[vmbus]") {
  Surroundings s;
  Offer nic;
  nic.interface_type = kClassNetwork;
  nic.instance = Guid::literal("11223344-5566-7788-99aa-bbccddeeff00");
  s.connect();
  REQUIRE(s.server.offer(nic).value() == 1);

  Bytes expected =
      hex("01 00 00 00 00 00 00 00  63 51 61 f8 3e df c5 46"
          "91 3f f2 d2 f9 65 ed 0e  44 33 22 11 66 55 88 77"
          "99 aa bb cc dd ee ff 00");
  expected.resize(196);
  expected[0x38] = std::byte{1};     // enumerate device interface
  expected[0xb8] = std::byte{1};     // relid
  expected[0xbc] = std::byte{0xff};  // no monitor
  expected[0xbe] = std::byte{1};     // dedicated interrupt
  expected[0xc0] = std::byte{1};
  expected[0xc1] = std::byte{0x20};  // connection id 0x2001
  CHECK(s.last_message == expected);
}

TEST_CASE("an integration component's offer says pipe, message mode", "[vmbus]") {
  Surroundings s;
  Offer offer;
  offer.interface_type = kClassHeartbeat;
  offer.pipe_message_mode = true;
  offer.user_defined[4] = 0x5a;
  offer.mmio_megabytes = 8;
  s.connect();
  REQUIRE(s.server.offer(offer).has_value());
  OfferChannel wire;
  REQUIRE(read_wire(s.last_message, wire));
  CHECK(wire.flags == 0x0011);
  CHECK(wire.user_defined[0] == 4);
  CHECK(wire.user_defined[4] == 0x5a);
  CHECK(wire.mmio_megabytes == 8);
}

}  // namespace vmbusd::vmbus
