// The devices that the guest cannot find out otherwise. iasl makes dsdt.hex of it when the VMM is built.
DefinitionBlock ("", "DSDT", 2, "VMBUSD", "VMBUSVMM", 1)
{
    // Soft off: the value that goes to the sleep control register (memory_map.h: kSleepTypeS5).
    Name (_S5, Package () { 5, 0, 0, 0 })

    Scope (\_SB)
    {
        // VMBus below a module device with its MMIO windows, as Hyper-V's generation 2 guests have it. A driver that
        // finds no window on the device walks up to it. [reference: vmbus 1.1]
        Device (VMOD)
        {
            Name (_HID, "ACPI0004")
            Name (_UID, 0)
            Name (_CRS, ResourceTemplate ()
            {
                DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                    0x00000000, 0xF8000000, 0xFEBFFFFF, 0x00000000, 0x06C00000)
                // A place holder: acpi.cc finds it by its address and puts the window above the guest's RAM.
                QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                    0x0000000000000000, 0x0BADC0DE00000000, 0x0BADC0DEFFFFFFFF, 0x0000000000000000, 0x0000000100000000)
            })

            Device (VMBS)
            {
                Name (_HID, "VMBus")
                Name (_DDN, "VMBUS")
                Name (_UID, 0)
                Name (STA, 0x0F)
                Method (_STA, 0, NotSerialized) { Return (STA) }
                Method (_DIS, 0, NotSerialized) { STA &= 0x0D }
                Method (_PS0, 0, NotSerialized) { STA |= 0x0F }
                Method (_PS3, 0, NotSerialized) { }
            }
        }

        Device (COM1)
        {
            Name (_HID, EisaId ("PNP0501"))
            Name (_UID, 1)
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, 0x03F8, 0x03F8, 0x00, 0x08)
                IRQNoFlags () { 4 }
            })
        }

        // Without an interrupt: it tells the time and wakes nobody.
        Device (RTC)
        {
            Name (_HID, EisaId ("PNP0B00"))
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, 0x0070, 0x0070, 0x00, 0x02)
            })
        }
    }
}
