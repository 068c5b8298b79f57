//! Network devices and their addresses by rtnetlink(7): as much of it as moving a device to another namespace takes.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// linux/netlink.h.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_EXCL_CREATE: u16 = 0x600;
const ATTRIBUTE_KIND: u16 = 0x3fff;

/// linux/rtnetlink.h.
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;

/// linux/if_link.h.
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
/// The index in the other namespace (Linux 5.13).
const IFLA_NEW_IFINDEX: u16 = 49;

/// linux/if_addr.h.
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
const IFA_RT_PRIORITY: u16 = 9;
const IFA_PROTO: u16 = 11;
const IFA_F_PERMANENT: u32 = 0x80;
/// What somebody set, and not what the kernel found out: NODAD, HOMEADDRESS, MANAGETEMPADDR, NOPREFIXROUTE, MCAUTOJOIN.
const IFA_F_SET: u32 = 0x02 | 0x10 | 0x100 | 0x200 | 0x400;
/// RT_SCOPE_UNIVERSE.
const SCOPE_GLOBAL: u8 = 0;

/// linux/sockios.h.
const SIOCGSKNS: libc::Ioctl = 0x894C;

/// Sizes of nlmsghdr, ifinfomsg, ifaddrmsg and nlattr.
const MESSAGE: usize = 16;
const LINK: usize = 16;
const ADDRESS: usize = 8;
const ATTRIBUTE: usize = 4;

/// More than the kernel puts into one datagram (32 KiB).
const BUFFER: usize = 64 * 1024;
/// How often a list is asked for again that changed while it was read.
const DUMPS: u32 = 16;
/// How many indexes are tried in the other namespace.
const INDEXES: i32 = 4096;

/// A socket for requests to the kernel about this process's network namespace. Whoever holds it may ask, from any
/// namespace, with rights of their own over the socket's namespace.
pub(crate) fn open() -> nix::Result<OwnedFd> {
    let door = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    // SAFETY: sockaddr_nl is plain data, for which all zeroes is a valid value.
    let mut kernel: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    kernel.nl_family = libc::sa_family_t::try_from(libc::AF_NETLINK).map_err(|_| Errno::EINVAL)?;
    let length = u32::try_from(size_of_val(&kernel)).map_err(|_| Errno::EINVAL)?;
    // Connected, so that no process of the namespace can answer in the kernel's place.
    // SAFETY: the kernel reads one sockaddr_nl, which outlives the call.
    let connected = unsafe { libc::connect(door.as_raw_fd(), (&raw const kernel).cast(), length) };
    Errno::result(connected)?;
    Ok(door)
}

/// A device as its namespace knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) index: i32,
    pub(crate) loopback: bool,
    pub(crate) up: bool,
}

/// An address of a device, to be given to another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    family: u8,
    prefix: u8,
    /// All that says what the address is, as the kernel wrote it.
    attributes: Vec<u8>,
}

/// The devices of one network namespace.
pub(crate) struct Devices {
    door: OwnedFd,
    sequence: u32,
}

impl Devices {
    /// Those of the namespace that the socket was opened in.
    pub(crate) fn new(door: OwnedFd) -> Self {
        Self { door, sequence: 0 }
    }

    /// The namespace itself (SIOCGSKNS, Linux 4.10).
    pub(crate) fn namespace(&self) -> nix::Result<OwnedFd> {
        // SAFETY: the request takes no argument.
        let opened = unsafe { libc::ioctl(self.door.as_raw_fd(), SIOCGSKNS, 0) };
        // SAFETY: the call returned a new descriptor, which nobody else owns.
        Errno::result(opened).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// The device of this name, of at most 15 bytes; none where there is none.
    pub(crate) fn find(&mut self, name: &str) -> nix::Result<Option<Device>> {
        let mut body = vec![0; LINK];
        push(&mut body, IFLA_IFNAME, &terminated(name));
        let mut found = None;
        let asked = self.ask(RTM_GETLINK, 0, &body, |kind, link| {
            if let (RTM_NEWLINK, Some(index), Some(flags)) =
                (kind, number(link, 4), number(link, 8))
            {
                let has = |flag: i32| flags & flag.cast_unsigned() != 0;
                found = Some(Device {
                    index: index.cast_signed(),
                    loopback: has(libc::IFF_LOOPBACK),
                    up: has(libc::IFF_UP),
                });
            }
        });
        match asked {
            Err(Errno::ENODEV) => Ok(None),
            other => other.map(|()| found),
        }
    }

    /// The permanent addresses of global scope that a device has, of IPv4 and IPv6.
    ///
    /// # Errors
    /// EAGAIN: they change all the time.
    pub(crate) fn addresses(&mut self, index: i32) -> nix::Result<Vec<Address>> {
        for _ in 0..DUMPS {
            let mut found = Vec::new();
            let asked = self.ask(RTM_GETADDR, NLM_F_DUMP, &[0; ADDRESS], |kind, address| {
                if kind == RTM_NEWADDR {
                    found.extend(lasting_address(index, address));
                }
            });
            match asked {
                Err(Errno::EAGAIN) => {}
                other => return other.map(|()| found),
            }
        }
        Err(Errno::EAGAIN)
    }

    /// Set a device down and move it to another namespace, under another name if one is given, in one request. Its index
    /// there. In a name the kernel fills in a number for `%d`.
    ///
    /// What the other namespace refuses leaves the device as it was, except for a name that the device cannot have there.
    pub(crate) fn move_to(
        &mut self,
        index: i32,
        namespace: &OwnedFd,
        name: Option<&str>,
    ) -> nix::Result<i32> {
        // No flag to set it down: the kernel does so itself, once it knows that the device may go.
        for there in index..index.saturating_add(INDEXES) {
            let mut body = link(index, 0, 0);
            push(
                &mut body,
                IFLA_NET_NS_FD,
                &namespace.as_raw_fd().to_ne_bytes(),
            );
            // Named by us, since the answer would not tell it.
            push(&mut body, IFLA_NEW_IFINDEX, &there.to_ne_bytes());
            if let Some(name) = name {
                push(&mut body, IFLA_IFNAME, &terminated(name));
            }
            match self.ask(RTM_NEWLINK, 0, &body, |_, _| {}) {
                // Somebody has that index.
                Err(Errno::EBUSY) => {}
                other => return other.map(|()| there),
            }
        }
        Err(Errno::EBUSY)
    }

    /// Give a device an address.
    pub(crate) fn add_address(&mut self, index: i32, address: &Address) -> nix::Result<()> {
        let mut body = vec![address.family, address.prefix, 0, SCOPE_GLOBAL];
        body.extend(index.to_ne_bytes());
        body.extend(&address.attributes);
        self.ask(RTM_NEWADDR, NLM_F_EXCL_CREATE, &body, |_, _| {})
    }

    /// Set a device up.
    pub(crate) fn set_up(&mut self, index: i32) -> nix::Result<()> {
        let up = libc::IFF_UP.cast_unsigned();
        self.ask(RTM_NEWLINK, 0, &link(index, up, up), |_, _| {})
    }

    /// Make a request and hear the answer to its end.
    fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        mut each: impl FnMut(u16, &[u8]),
    ) -> nix::Result<()> {
        self.sequence += 1;
        let length = u32::try_from(MESSAGE + body.len()).map_err(|_| Errno::EMSGSIZE)?;
        let mut request = length.to_ne_bytes().to_vec();
        request.extend(kind.to_ne_bytes());
        request.extend((NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
        request.extend(self.sequence.to_ne_bytes());
        request.extend([0; 4]);
        request.extend(body);
        let door = self.door.as_raw_fd();
        while send(door, &request, MsgFlags::empty()).map_or_else(retry, |_| Ok(false))? {}
        let mut buffer = vec![0; BUFFER];
        let mut changed = false;
        loop {
            // With MSG_TRUNC the length is that of the datagram, whatever was cut off.
            let length = match recv(door, &mut buffer, MsgFlags::MSG_TRUNC) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            let datagram = buffer.get(..length).ok_or(Errno::EMSGSIZE)?;
            for message in messages(datagram) {
                if message.sequence != self.sequence {
                    continue;
                }
                changed |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        // A negative errno, or 0.
                        let said = number(message.body, 0).ok_or(Errno::EPROTO)?.cast_signed();
                        return match said {
                            0 if changed => Err(Errno::EAGAIN),
                            0 => Ok(()),
                            errno => Err(Errno::from_raw(errno.saturating_neg())),
                        };
                    }
                    kind => each(kind, message.body),
                }
            }
        }
    }
}

fn retry(errno: Errno) -> nix::Result<bool> {
    match errno {
        Errno::EINTR => Ok(true),
        other => Err(other),
    }
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

/// The messages of a datagram. What is cut off is not one.
fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(number(datagram, 0)?).ok()?;
        let body = datagram.get(MESSAGE..length)?;
        let message = Message {
            kind: short(datagram, 4)?,
            flags: short(datagram, 6)?,
            sequence: number(datagram, 8)?,
            body,
        };
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
        Some(message)
    })
}

/// The attributes that follow a message's own structure, by kind.
fn attributes(mut list: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(short(list, 0)?);
        let kind = short(list, 2)? & ATTRIBUTE_KIND;
        let value = list.get(ATTRIBUTE..length)?;
        list = list.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn push(list: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(ATTRIBUTE + value.len()).unwrap_or(u16::MAX);
    list.extend(length.to_ne_bytes());
    list.extend(kind.to_ne_bytes());
    list.extend(value);
    list.resize(list.len().next_multiple_of(4), 0);
}

/// An ifinfomsg.
fn link(index: i32, flags: u32, change: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body.extend(change.to_ne_bytes());
    body
}

/// The address in an ifaddrmsg and its attributes, if it is one of this device, permanent and of global scope.
fn lasting_address(index: i32, message: &[u8]) -> Option<Address> {
    let [family, prefix, flags, scope] = *message.first_chunk()?;
    let list = message.get(ADDRESS..)?;
    // The short flags are part of the long ones, which every kernel since 3.14 sends.
    let flags = attributes(list)
        .find(|(kind, _)| *kind == IFA_FLAGS)
        .and_then(|(_, value)| number(value, 0))
        .unwrap_or_else(|| u32::from(flags));
    let wanted = number(message, 4)?.cast_signed() == index
        && scope == SCOPE_GLOBAL
        && flags & IFA_F_PERMANENT != 0;
    if !wanted {
        return None;
    }
    let mut kept = Vec::new();
    // Not the label, which has the device's name here.
    for (kind, value) in attributes(list) {
        if let IFA_ADDRESS | IFA_LOCAL | IFA_BROADCAST | IFA_CACHEINFO | IFA_RT_PRIORITY
        | IFA_PROTO = kind
        {
            push(&mut kept, kind, value);
        }
    }
    push(&mut kept, IFA_FLAGS, &(flags & IFA_F_SET).to_ne_bytes());
    Some(Address {
        family,
        prefix,
        attributes: kept,
    })
}

fn terminated(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ifaddrmsg of device 7 with a /24.
    fn address(flags: u32, scope: u8) -> Vec<u8> {
        let mut message = vec![2, 24, 0x80, scope, 7, 0, 0, 0];
        push(&mut message, IFA_ADDRESS, &[10, 0, 0, 1]);
        // IFA_LABEL.
        push(&mut message, 3, b"d0\0");
        push(&mut message, IFA_FLAGS, &flags.to_ne_bytes());
        message
    }

    #[test]
    fn permanent_addresses_of_global_scope_are_kept_without_label_and_state() {
        // NOPREFIXROUTE was set, TENTATIVE (0x40) is the kernel's.
        let found = lasting_address(7, &address(0x80 | 0x40 | 0x200, 0)).unwrap();
        let kept: Vec<_> = attributes(&found.attributes).collect();
        let flags = 0x200_u32.to_ne_bytes();
        assert_eq!((found.family, found.prefix), (2, 24));
        assert_eq!(
            kept,
            [(IFA_ADDRESS, &[10, 0, 0, 1][..]), (IFA_FLAGS, &flags)]
        );
        for (index, flags, scope) in [(8, 0x80, 0), (7, 0, 0), (7, 0x80, 253)] {
            assert_eq!(lasting_address(index, &address(flags, scope)), None);
        }
    }

    #[test]
    fn what_is_cut_off_is_not_read() {
        let mut datagram = 20_u32.to_ne_bytes().to_vec();
        datagram.extend([3, 0, 2, 0, 9, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]);
        let whole: Vec<_> = messages(&datagram).map(|m| m.body.len()).collect();
        assert_eq!(whole, [4]);
        for length in 0..datagram.len() {
            assert_eq!(messages(&datagram[..length]).count(), 0, "{length}");
        }
        // A length that says less than there must be does not go on for ever.
        assert_eq!(messages(&[0; 64]).count(), 0);
        assert_eq!(attributes(&[0; 64]).count(), 0);
        let whole = address(0x80, 0);
        for length in 0..whole.len() {
            attributes(whole.get(ADDRESS..length).unwrap_or_default()).count();
            lasting_address(7, &whole[..length]);
        }
    }
}
