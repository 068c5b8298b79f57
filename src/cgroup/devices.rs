//! Device rules: from the configuration's list to one eBPF program for the cgroup.
//!
//! The rules are read as the device controller of cgroup v1 read them: everything is denied at first, a later rule
//! overrides an earlier one, and a rule of type `a` discards all before it. Each of read, write and mknod is judged by
//! the newest rule that speaks of it, and an access needs the consent of all it asks for.
//!
//! COMPAT: v1 could not take a part out of a wildcard ("allow c *:*, deny c 1:3") and ignored such a rule; runc refuses
//! it. Here it does what it says.

use anyhow::{Result, bail};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::sys::bpf::Instruction;

/// `BPF_DEVCG_ACC_MKNOD`, `_READ` and `_WRITE`.
const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const ALL: u8 = MKNOD | READ | WRITE;

/// What every container may do, in the words of a configuration: make any node, use the default devices and terminals.
/// These follow the configured rules, so that none of them can take the default devices away.
const DEFAULTS: [Rule; 11] = [
    Rule::allow(Kind::Char, None, None, MKNOD),
    Rule::allow(Kind::Block, None, None, MKNOD),
    Rule::allow(Kind::Char, Some(1), Some(3), ALL), // null
    Rule::allow(Kind::Char, Some(1), Some(5), ALL), // zero
    Rule::allow(Kind::Char, Some(1), Some(7), ALL), // full
    Rule::allow(Kind::Char, Some(1), Some(8), ALL), // random
    Rule::allow(Kind::Char, Some(1), Some(9), ALL), // urandom
    Rule::allow(Kind::Char, Some(5), Some(0), ALL), // tty
    Rule::allow(Kind::Char, Some(5), Some(2), ALL), // ptmx
    Rule::allow(Kind::Char, Some(10), Some(200), ALL), // net/tun
    Rule::allow(Kind::Char, Some(136), None, ALL),  // pts/*
];

/// The compiled device rules of a container.
#[derive(Debug)]
pub(crate) struct Devices {
    /// `None`: every access is allowed, so there is nothing to attach.
    program: Option<Vec<Instruction>>,
    policy: Policy,
}

impl Devices {
    /// Compile the configuration's rules, followed by those of the default devices (runtime-spec, "Allowed Device
    /// list"). Refuses a rule without access, with an unknown access letter or type, or with an impossible number.
    pub(crate) fn compile(rules: &[LinuxDeviceCgroup]) -> Result<Self> {
        let mut policy = Policy::default();
        for (index, rule) in rules.iter().enumerate() {
            policy.take(rule, index)?;
        }
        policy.rules.extend(DEFAULTS);
        policy.reduce();
        let everything = policy.rules.is_empty() && policy.otherwise == Verdict::Allow;
        Ok(Self {
            program: (!everything).then(|| policy.program()),
            policy,
        })
    }

    /// What is allowed, as pairs of device and access in systemd's words (systemd.resource-control(5), DeviceAllow). None
    /// where the rules are not a mere list of what is allowed, or where it has no word for a device.
    pub(super) fn allowed(&self) -> Option<Vec<(String, String)>> {
        if self.policy.otherwise == Verdict::Allow {
            return None;
        }
        let pair = |rule: &Rule| {
            let kind = match rule.kind {
                Kind::Block => "block",
                Kind::Char => "char",
            };
            let device = match (rule.major, rule.minor) {
                (None, None) => format!("{kind}-*"),
                (Some(major), None) => format!("{kind}-{major}"),
                (Some(major), Some(minor)) => format!("/dev/{kind}/{major}:{minor}"),
                (None, Some(_)) => return None,
            };
            let letters = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')];
            let access = letters
                .iter()
                .filter(|(bit, _)| rule.access & bit != 0)
                .map(|(_, letter)| letter);
            (rule.verdict == Verdict::Allow).then(|| (device, access.collect()))
        };
        self.policy.rules.iter().map(pair).collect()
    }

    /// The program to attach, if there is anything to forbid.
    pub(super) fn program(&self) -> Option<&[Instruction]> {
        self.program.as_deref()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `BPF_DEVCG_DEV_BLOCK`
    Block = 1,
    /// `BPF_DEVCG_DEV_CHAR`
    Char = 2,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Verdict {
    #[default]
    Deny = 0,
    Allow = 1,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    verdict: Verdict,
    kind: Kind,
    /// `None` is every number.
    major: Option<u32>,
    minor: Option<u32>,
    /// Never empty.
    access: u8,
}

impl Rule {
    const fn allow(kind: Kind, major: Option<u32>, minor: Option<u32>, access: u8) -> Self {
        Self {
            verdict: Verdict::Allow,
            kind,
            major,
            minor,
            access,
        }
    }

    /// Whether every device of `other` is also one of this rule.
    fn covers(&self, other: &Self) -> bool {
        self.kind == other.kind
            && (self.major.is_none() || self.major == other.major)
            && (self.minor.is_none() || self.minor == other.minor)
    }
}

/// The meaning of a list of rules.
#[derive(Debug, Default)]
struct Policy {
    /// For an access of which no rule speaks.
    otherwise: Verdict,
    /// Oldest first.
    rules: Vec<Rule>,
}

impl Policy {
    fn take(&mut self, rule: &LinuxDeviceCgroup, index: usize) -> Result<()> {
        let access = access(rule.access().as_deref().unwrap_or_default(), index)?;
        let verdict = if rule.allow() {
            Verdict::Allow
        } else {
            Verdict::Deny
        };
        let kind = match rule.typ().unwrap_or(LinuxDeviceType::A) {
            // COMPAT: as in cgroup v1 and runc, numbers and access of such a rule do not matter.
            LinuxDeviceType::A => {
                *self = Self {
                    otherwise: verdict,
                    rules: Vec::new(),
                };
                return Ok(());
            }
            LinuxDeviceType::B => Kind::Block,
            LinuxDeviceType::C => Kind::Char,
            other => bail!(
                "invalid cgroup device type {:?}: linux.resources.devices[{index}]",
                other.as_str()
            ),
        };
        let major = number(rule.major(), "major", index)?;
        let minor = number(rule.minor(), "minor", index)?;
        self.rules.push(Rule {
            verdict,
            kind,
            major,
            minor,
            access,
        });
        Ok(())
    }

    /// Drop what cannot change a decision: accesses that a newer rule decides for the same devices, and the oldest
    /// rules as long as they say what would hold without them.
    fn reduce(&mut self) {
        let mut kept: Vec<Rule> = Vec::with_capacity(self.rules.len());
        for mut rule in self.rules.drain(..).rev() {
            let decided = kept
                .iter()
                .filter(|newer| newer.covers(&rule))
                .fold(0, |all, newer| all | newer.access);
            rule.access &= !decided;
            if rule.access != 0 {
                kept.push(rule);
            }
        }
        while kept
            .last()
            .is_some_and(|oldest| oldest.verdict == self.otherwise)
        {
            kept.pop();
        }
        kept.reverse();
        self.rules = kept;
    }

    /// One program, newest rule first. `ASKED` starts with all that is asked for and loses what a rule allows; empty
    /// means allowed. The first rule that denies something still asked for ends it.
    fn program(&self) -> Vec<Instruction> {
        use assemble::*;
        let mut program = vec![
            load(ASKED, CONTEXT, 0),
            load(MAJOR, CONTEXT, 4),
            load(MINOR, CONTEXT, 8),
            copy(KIND, ASKED),
            and(KIND, 0xffff),
            shift_right(ASKED, 16),
        ];
        for rule in self.rules.iter().rev() {
            let decision = match (rule.verdict, rule.access) {
                (verdict, ALL) => vec![set(RESULT, verdict as i32), exit()],
                (Verdict::Allow, access) => vec![
                    and(ASKED, !i32::from(access)),
                    unless_equal(ASKED, 0, 2),
                    set(RESULT, Verdict::Allow as i32),
                    exit(),
                ],
                (Verdict::Deny, access) => vec![
                    copy(DENIED, ASKED),
                    and(DENIED, i32::from(access)),
                    if_equal(DENIED, 0, 2),
                    set(RESULT, Verdict::Deny as i32),
                    exit(),
                ],
            };
            let conditions = [
                (KIND, Some(rule.kind as u32)),
                (MAJOR, rule.major),
                (MINOR, rule.minor),
            ]
            .into_iter()
            .filter_map(|(register, wanted)| Some((register, wanted?)));
            // A condition that holds skips the jump behind the decision that follows it. The verifier goes straight on
            // first: it thus sees each rule with registers of which it knows nothing before it sees it with known ones,
            // and has no need to look at the rest again. The other way round its work grows with the square.
            let mut tests: Vec<Instruction> = Vec::new();
            let mut behind = i16::try_from(decision.len()).unwrap_or(i16::MAX);
            for (register, wanted) in conditions.rev() {
                tests.extend([jump(behind), if_equal(register, wanted.cast_signed(), 1)]);
                behind += 2;
            }
            program.extend(tests.into_iter().rev());
            program.extend(decision);
        }
        program.extend([set(RESULT, self.otherwise as i32), exit()]);
        program
    }
}

fn access(letters: &str, index: usize) -> Result<u8> {
    if letters.is_empty() {
        bail!("device access at {index} field cannot be empty");
    }
    letters.chars().try_fold(0, |access, letter| match letter {
        'r' => Ok(access | READ),
        'w' => Ok(access | WRITE),
        'm' => Ok(access | MKNOD),
        _ => bail!("device access at {index} field has {letter:?}, which is none of r, w and m"),
    })
}

/// A device number; absent and −1 mean every number.
fn number(number: Option<i64>, which: &str, index: usize) -> Result<Option<u32>> {
    match number {
        None | Some(-1) => Ok(None),
        Some(number) => match u32::try_from(number) {
            Ok(number) => Ok(Some(number)),
            Err(_) => {
                bail!("linux.resources.devices[{index}].{which}: {number} is not a device number")
            }
        },
    }
}

/// The few instructions that a device program needs; all arithmetic and all comparisons are of 32 bits.
mod assemble {
    use crate::sys::bpf::Instruction;

    pub(super) const RESULT: u8 = 0;
    /// `struct bpf_cgroup_dev_ctx`: access in the upper and type in the lower half of a word, major, minor.
    pub(super) const CONTEXT: u8 = 1;
    pub(super) const KIND: u8 = 2;
    pub(super) const ASKED: u8 = 3;
    pub(super) const MAJOR: u8 = 4;
    pub(super) const MINOR: u8 = 5;
    pub(super) const DENIED: u8 = 0;

    /// `BPF_LDX | BPF_MEM | BPF_W`
    pub(super) const LOAD: u8 = 0x61;
    /// `BPF_ALU | BPF_MOV | BPF_X`
    pub(super) const COPY: u8 = 0xbc;
    /// `BPF_ALU | BPF_MOV | BPF_K`
    pub(super) const SET: u8 = 0xb4;
    /// `BPF_ALU | BPF_AND | BPF_K`
    pub(super) const AND: u8 = 0x54;
    /// `BPF_ALU | BPF_RSH | BPF_K`
    pub(super) const SHIFT_RIGHT: u8 = 0x74;
    /// `BPF_JMP | BPF_JA`
    pub(super) const JUMP: u8 = 0x05;
    /// `BPF_JMP32 | BPF_JEQ | BPF_K`
    pub(super) const IF_EQUAL: u8 = 0x16;
    /// `BPF_JMP32 | BPF_JNE | BPF_K`
    pub(super) const UNLESS_EQUAL: u8 = 0x56;
    /// `BPF_JMP | BPF_EXIT`
    pub(super) const EXIT: u8 = 0x95;

    const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
        Instruction {
            code,
            registers: from << 4 | to,
            offset,
            immediate,
        }
    }

    pub(super) const fn load(to: u8, from: u8, offset: i16) -> Instruction {
        instruction(LOAD, to, from, offset, 0)
    }
    pub(super) const fn copy(to: u8, from: u8) -> Instruction {
        instruction(COPY, to, from, 0, 0)
    }
    pub(super) const fn set(to: u8, value: i32) -> Instruction {
        instruction(SET, to, 0, 0, value)
    }
    pub(super) const fn and(to: u8, mask: i32) -> Instruction {
        instruction(AND, to, 0, 0, mask)
    }
    pub(super) const fn shift_right(to: u8, bits: i32) -> Instruction {
        instruction(SHIFT_RIGHT, to, 0, 0, bits)
    }
    pub(super) const fn jump(skip: i16) -> Instruction {
        instruction(JUMP, 0, 0, skip, 0)
    }
    pub(super) const fn if_equal(register: u8, value: i32, skip: i16) -> Instruction {
        instruction(IF_EQUAL, register, 0, skip, value)
    }
    pub(super) const fn unless_equal(register: u8, value: i32, skip: i16) -> Instruction {
        instruction(UNLESS_EQUAL, register, 0, skip, value)
    }
    pub(super) const fn exit() -> Instruction {
        instruction(EXIT, 0, 0, 0, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `allow|deny TYPE MAJOR:MINOR ACCESS`, with `*` for every number.
    fn rule(text: &str) -> LinuxDeviceCgroup {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (major, minor) = words[2].split_once(':').unwrap();
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(words[0] == "allow");
        rule.set_typ(Some(match words[1] {
            "a" => LinuxDeviceType::A,
            "b" => LinuxDeviceType::B,
            "c" => LinuxDeviceType::C,
            "u" => LinuxDeviceType::U,
            _ => LinuxDeviceType::P,
        }));
        rule.set_major(major.parse().ok());
        rule.set_minor(minor.parse().ok());
        rule.set_access(words.get(3).map(|&access| access.to_owned()));
        rule
    }

    fn compile(rules: &[&str]) -> Devices {
        Devices::compile(&rules.iter().map(|text| rule(text)).collect::<Vec<_>>()).unwrap()
    }

    /// Run a program on `TYPE MAJOR:MINOR ACCESS` as the kernel would.
    fn run(program: &[Instruction], request: &str) -> bool {
        use assemble::*;
        let words: Vec<&str> = request.split_whitespace().collect();
        let (major, minor) = words[1].split_once(':').unwrap();
        let kind = if words[0] == "b" {
            Kind::Block
        } else {
            Kind::Char
        };
        let asked = words
            .get(2)
            .map_or(0, |letters| super::access(letters, 0).unwrap());
        let context = [
            u32::from(asked) << 16 | kind as u32,
            major.parse().unwrap(),
            minor.parse().unwrap(),
        ];

        let mut registers = [None; 11];
        let mut at = 0;
        loop {
            let Instruction {
                code,
                registers: names,
                offset,
                immediate,
            } = program[at];
            let (to, from) = (usize::from(names & 15), usize::from(names >> 4));
            let value = immediate.cast_unsigned();
            let read = |register: usize| {
                registers[register].expect("the verifier refuses reading an unset register")
            };
            at += 1;
            match code {
                LOAD => registers[to] = Some(context[usize::try_from(offset).unwrap() / 4]),
                COPY => registers[to] = Some(read(from)),
                SET => registers[to] = Some(value),
                AND => registers[to] = Some(read(to) & value),
                SHIFT_RIGHT => registers[to] = Some(read(to) >> value),
                JUMP => at += usize::try_from(offset).unwrap(),
                IF_EQUAL if read(to) == value => at += usize::try_from(offset).unwrap(),
                UNLESS_EQUAL if read(to) != value => at += usize::try_from(offset).unwrap(),
                IF_EQUAL | UNLESS_EQUAL => {}
                EXIT => return read(usize::from(RESULT)) == 1,
                _ => panic!("unknown instruction {code:#x}"),
            }
        }
    }

    fn allowed(rules: &[&str], request: &str) -> bool {
        compile(rules)
            .program()
            .is_none_or(|program| run(program, request))
    }

    #[test]
    fn decisions_follow_the_newest_rule() {
        const DENY_ALL: &str = "deny a *:* rwm";
        const ALLOW_ALL: &str = "allow a *:* rwm";
        let table: &[(&[&str], &str, bool)] = &[
            // Without any rule only the default devices and mknod are left.
            (&[], "c 1:3 rw", true),
            (&[], "c 1:5 r", true),
            (&[], "c 5:0 rw", true),
            (&[], "c 5:2 rw", true),
            (&[], "c 136:17 rw", true),
            (&[], "c 10:200 rw", true),
            (&[], "c 1:1 r", false),
            (&[], "c 1:1 m", true),
            (&[], "b 8:0 m", true),
            (&[], "b 8:0 r", false),
            (&[], "b 8:0 rm", false),
            // A block device is not the character device of the same number.
            (&[], "b 1:3 r", false),
            (&[DENY_ALL], "c 1:3 rw", true),
            (&[DENY_ALL], "c 10:229 r", false),
            (&[DENY_ALL, "allow c 10:229 rwm"], "c 10:229 rw", true),
            (&[DENY_ALL, "allow c 10:229 rwm"], "c 10:228 r", false),
            (&[DENY_ALL, "allow c 10:229 rwm"], "c 11:229 r", false),
            // Access by parts.
            (&[DENY_ALL, "allow c 10:229 r"], "c 10:229 r", true),
            (&[DENY_ALL, "allow c 10:229 r"], "c 10:229 w", false),
            (&[DENY_ALL, "allow c 10:229 r"], "c 10:229 rw", false),
            (
                &[DENY_ALL, "allow c 10:229 r", "allow c 10:229 w"],
                "c 10:229 rw",
                true,
            ),
            (
                &[DENY_ALL, "allow c 10:229 r", "allow c 10:* w"],
                "c 10:229 rw",
                true,
            ),
            // access(2) with F_OK asks for nothing.
            (&[DENY_ALL, "allow c 10:229 r"], "c 10:229", true),
            (&[DENY_ALL], "c 10:228", true),
            // A later rule overrides, wherever its wildcards are.
            (
                &[DENY_ALL, "allow b 8:* rw", "deny b 8:1 w"],
                "b 8:0 rw",
                true,
            ),
            (
                &[DENY_ALL, "allow b 8:* rw", "deny b 8:1 w"],
                "b 8:1 r",
                true,
            ),
            (
                &[DENY_ALL, "allow b 8:* rw", "deny b 8:1 w"],
                "b 8:1 rw",
                false,
            ),
            (&["allow b 8:1 rwm", "deny b *:* rw"], "b 8:1 r", false),
            (&["deny b 8:1 rwm", "allow b *:* rw"], "b 8:1 rw", true),
            (&["allow b *:7 r"], "b 259:7 r", true),
            (&["allow b *:7 r"], "b 259:8 r", false),
            // Type a discards all before it.
            (&["allow b 8:0 rwm", DENY_ALL], "b 8:0 r", false),
            (&[DENY_ALL, ALLOW_ALL], "b 8:0 rwm", true),
            (&[ALLOW_ALL, "deny b 8:0 w"], "b 8:0 r", true),
            (&[ALLOW_ALL, "deny b 8:0 w"], "b 8:0 w", false),
            (&[ALLOW_ALL, "deny b 8:0 w"], "b 8:0 rw", false),
            (&[ALLOW_ALL, "deny b 8:0 w"], "b 9:0 w", true),
            // The default devices cannot be taken away.
            (&[ALLOW_ALL, "deny c *:* rwm"], "c 1:3 rw", true),
            (&[ALLOW_ALL, "deny c *:* rwm"], "c 1:1 r", false),
            // −1 is a wildcard, as in runc.
            (&["allow c -1:-1 r"], "c 77:88 r", true),
            // Numbers above 2^31 compare as they are.
            (&["allow c 4294967295:1 r"], "c 4294967295:1 r", true),
        ];
        for (rules, request, expected) in table {
            assert_eq!(
                allowed(rules, request),
                *expected,
                "{rules:?} and then {request}"
            );
        }
    }

    #[test]
    fn a_rule_without_type_or_numbers_is_for_all_devices() {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true);
        rule.set_access(Some("rwm".to_owned()));
        assert!(Devices::compile(&[rule]).unwrap().program().is_none());
    }

    #[test]
    fn rules_that_allow_everything_need_no_program() {
        assert!(
            compile(&["deny a *:* rwm", "allow a *:* rwm"])
                .program()
                .is_none()
        );
        assert!(
            compile(&["allow a *:* rwm", "allow c 1:1 r"])
                .program()
                .is_none()
        );
        assert!(
            compile(&["allow a *:* rwm", "deny c 1:1 r", "allow c 1:* rw"])
                .program()
                .is_none()
        );
        assert!(
            compile(&["allow a *:* rwm", "deny c 1:1 r"])
                .program()
                .is_some()
        );
    }

    #[test]
    fn repeated_and_overridden_rules_cost_nothing() {
        let plain = compile(&[]).program().unwrap().len();
        let repeated = [
            "deny a *:* rwm",
            "allow c 1:3 rwm",
            "allow c 1:3 r",
            "allow c *:* m",
            "allow c 136:2 rw",
        ];
        assert_eq!(compile(&repeated).program().unwrap().len(), plain);
    }

    #[test]
    fn malformed_rules_are_refused() {
        for (text, error) in [
            ("allow c 1:3", "device access at 0 field cannot be empty"),
            (
                "allow c 1:3 rx",
                "device access at 0 field has 'x', which is none of r, w and m",
            ),
            (
                "allow p 1:3 r",
                "invalid cgroup device type \"p\": linux.resources.devices[0]",
            ),
            (
                "allow u 1:3 r",
                "invalid cgroup device type \"u\": linux.resources.devices[0]",
            ),
            (
                "allow c -2:3 r",
                "linux.resources.devices[0].major: -2 is not a device number",
            ),
            (
                "allow c 1:4294967296 r",
                "linux.resources.devices[0].minor: 4294967296 is not a device number",
            ),
        ] {
            assert_eq!(
                Devices::compile(&[rule(text)]).unwrap_err().to_string(),
                error,
                "{text}"
            );
        }
    }
}
