//! The kernel's log: critical errors (Xid) of GPUs from before anybody watched.
//!
//! Enters: `/dev/kmsg`, where it may be read. Leaves: how often each GPU had which error, as far back as the log goes. Nothing where there is
//! none (a container, another user).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;

use super::{PciAddress, XIDS_MAX, Xids};

/// Records that are read at most; the log holds some thousand.
const RECORDS: usize = 1 << 20;
/// The longest record (`PRINTK_MESSAGE_MAX`, include/linux/printk.h, and room).
const RECORD_BYTES: usize = 8192;

/// Errors by the GPU's place on the bus.
pub(super) fn xids() -> BTreeMap<PciAddress, Xids> {
    let mut xids = BTreeMap::new();
    let Ok(mut log) = File::options().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg") else { return xids };
    let mut record = vec![0; RECORD_BYTES];
    for _ in 0..RECORDS {
        // A record a call; at the end it would block.
        match log.read(&mut record) {
            Ok(0) => break,
            Ok(len) => add(&record[..len], &mut xids),
            // That one was overwritten meanwhile, or is too long.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) || error.kind() == ErrorKind::InvalidInput => {}
            Err(_) => break,
        }
    }
    xids
}

/// `4,1234,567890,-;NVRM: Xid (PCI:0000:17:00): 79, pid=…`: the kernel's own records alone (facility 0), which nobody else can write.
fn add(record: &[u8], xids: &mut BTreeMap<PciAddress, Xids>) {
    let Some((address, number)) = std::str::from_utf8(record).ok().and_then(parse) else { return };
    let of = xids.entry(address).or_default();
    if of.len() < XIDS_MAX || of.contains_key(&number) {
        *of.entry(number).or_default() += 1;
    }
}

fn parse(record: &str) -> Option<(PciAddress, u64)> {
    let (head, text) = record.split_once(';')?;
    let priority: u32 = head.split(',').next()?.parse().ok()?;
    // The lowest three bits are how grave it is (syslog(2)).
    if priority >> 3 != 0 {
        return None;
    }
    let (place, rest) = text.strip_prefix("NVRM: Xid (PCI:")?.split_once("): ")?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let mut numbers = place.split([':', '.']).map(|number| u32::from_str_radix(number, 16));
    let address =
        PciAddress { domain: numbers.next()?.ok()?, bus: numbers.next()?.ok()?, device: numbers.next()?.ok()? };
    Some((address, rest[..digits].parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_counted_by_gpu_and_number() {
        let mut xids = BTreeMap::new();
        for record in [
            "3,812,7061000,-;NVRM: Xid (PCI:0000:17:00): 31, pid=4242, name=python3, Ch 00000008\n",
            "3,813,7062000,-;NVRM: Xid (PCI:0000:17:00): 31, pid=4242, name=python3, Ch 00000009\n SUBSYSTEM=pci\n",
            "4,814,7063000,-;NVRM: Xid (PCI:0001:b3:00): 79, GPU has fallen off the bus.\n",
            // Written by a program, not by the kernel.
            "12,815,7064000,-;NVRM: Xid (PCI:0000:17:00): 79, a lie\n",
            "6,816,7065000,-;usb 1-1: new device\n",
            "3,817,7066000,-;NVRM: Xid (PCI:zz:17:00): 79\n",
            "no record",
        ] {
            add(record.as_bytes(), &mut xids);
        }
        let at = |domain, bus| PciAddress { domain, bus, device: 0 };
        let expected = [(at(0, 0x17), Xids::from([(31, 2)])), (at(1, 0xb3), Xids::from([(79, 1)]))];
        assert_eq!(xids, BTreeMap::from(expected));
    }
}
