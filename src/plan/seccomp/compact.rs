//! The same filter in fewer instructions.
//!
//! The kernel translates a filter when it is loaded, and tries it with every system call number to learn which are
//! always allowed. The time for both goes by the length of the program and by the steps to a verdict, and libseccomp,
//! which spends an instruction or more on every call that the profile names, is generous with both.
//!
//! [`Meaning`] is what a program makes of every call: for each range of architectures and of numbers a verdict, or the
//! tests of arguments that lead to one. It is found by following the program, not by knowing who wrote it. From it the
//! program is written anew, with a search over the ranges, and read back: unless that yields the very same meaning, as
//! when the program has an instruction that is not understood here, the filter stays as it was.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::sys::filter::{ARCH, Comparison, INSTRUCTION_SIZE, Instruction, NUMBER};

/// As many numbers apart from the rest are looked for one after the other; for more the range is split first.
const APART: usize = 3;

/// The kernel tries a filter with the numbers below about this one, those of its system calls.
const CALLS: u32 = 480;

/// A program that gives every call the verdict that `bpf` gives it, and is shorter. None when there is no such program
/// or `bpf` has something that is not understood here.
pub(super) fn compact(bpf: &[u8]) -> Option<Vec<u8>> {
    let (instructions, rest) = bpf.as_chunks::<INSTRUCTION_SIZE>();
    let program: Option<Vec<Instruction>> = instructions
        .iter()
        .map(|bytes| Instruction::read(*bytes))
        .collect();
    let program = program.filter(|_| rest.is_empty())?;

    let mut graph = Graph::default();
    let meaning = Meaning::of(&program, &mut graph)?;
    let start = meaning.search(&mut graph);
    let compact = assemble(&graph, start);
    let kept = Meaning::of(&compact, &mut graph)? == meaning;
    (kept && compact.len() < program.len())
        .then(|| compact.into_iter().flat_map(Instruction::bytes).collect())
}

/// A value that a program can test: some bits of a word of `struct seccomp_data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Word {
    offset: u32,
    mask: u32,
}

impl Word {
    const ARCH: Self = Self::whole(ARCH);
    const NUMBER: Self = Self::whole(NUMBER);

    const fn whole(offset: u32) -> Self {
        Self {
            offset,
            mask: u32::MAX,
        }
    }
}

/// A comparison, and where each answer leads: in a [`Graph`] to a node, in a program to an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Test<To> {
    word: Word,
    when: Comparison,
    value: u32,
    yes: To,
    no: To,
}

/// What comes next, once everything that is known has been used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Outcome<To> {
    /// `SECCOMP_RET_*` with its data.
    Verdict(u32),
    Test(Test<To>),
}

/// A place in a [`Graph`]. Nodes of one graph are equal exactly when the same tests lead from them to the same verdicts.
/// A node is greater than those it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Node(usize);

/// Outcomes, each once.
#[derive(Default)]
struct Graph {
    outcomes: Vec<Outcome<Node>>,
    nodes: HashMap<Outcome<Node>, Node>,
}

impl Graph {
    fn node(&mut self, outcome: Outcome<Node>) -> Node {
        match outcome {
            // The answer changes nothing.
            Outcome::Test(test) if test.yes == test.no => test.yes,
            _ => *self.nodes.entry(outcome).or_insert_with(|| {
                self.outcomes.push(outcome);
                Node(self.outcomes.len() - 1)
            }),
        }
    }

    fn test(&mut self, word: Word, when: Comparison, value: u32, yes: Node, no: Node) -> Node {
        self.node(Outcome::Test(Test {
            word,
            when,
            value,
            yes,
            no,
        }))
    }

    fn outcome(&self, node: Node) -> Outcome<Node> {
        self.outcomes[node.0]
    }

    /// A search for the value of `word`, all of whose bits are looked at, in these runs, of which the last ends at
    /// `last`.
    fn search(&mut self, word: Word, runs: &[Run<Node>], last: u32) -> Node {
        if let Some(node) = self.pick(word, runs, last) {
            return node;
        }
        let (low, high) = runs.split_at(middle(runs, last));
        let from = high[0].first;
        let yes = self.search(word, high, last);
        // What is made last comes to stand right behind the test, and there are more calls among low numbers.
        let no = self.search(word, low, from - 1);
        self.test(word, Comparison::AtLeast, from, yes, no)
    }

    /// The search without ranges, where a few single values have outcomes of their own and all others the same one.
    fn pick(&mut self, word: Word, runs: &[Run<Node>], last: u32) -> Option<Node> {
        let usual = runs
            .iter()
            .zip(ends(runs, last))
            .find_map(|(run, end)| (run.first < end).then_some(run.then))
            .unwrap_or(runs[0].then);
        let others = || {
            let runs = runs.iter().zip(ends(runs, last));
            runs.filter(|(run, _)| run.then != usual)
        };
        if others().count() > APART || others().any(|(run, end)| run.first < end) {
            return None;
        }
        // The highest value is tested first: as architectures those are the ones with 64 bits.
        Some(others().fold(usual, |node, (run, _)| {
            self.test(word, Comparison::Equal, run.first, run.then, node)
        }))
    }
}

/// Values from `first` on, up to the next run, for which the same follows.
#[derive(Debug, PartialEq, Eq)]
struct Run<T> {
    first: u32,
    then: T,
}

/// The last value of each of the runs, of which the last ends at `last`.
fn ends<T>(runs: &[Run<T>], last: u32) -> impl Iterator<Item = u32> {
    let next = runs.iter().skip(1).map(|run| run.first - 1);
    next.chain([last])
}

/// Where to split two or more runs, so that as many numbers of calls lie on both sides: the most find their outcome
/// after few tests.
fn middle(runs: &[Run<Node>], last: u32) -> usize {
    let weigh = |(run, end): (&Run<Node>, u32)| 1 + (end.min(CALLS) + 1).saturating_sub(run.first);
    let weights: Vec<u32> = runs.iter().zip(ends(runs, last)).map(weigh).collect();
    let total: u32 = weights.iter().sum();
    let mut below = 0;
    let unevenness = weights.iter().map(|weight| {
        below += weight;
        below.abs_diff(total - below)
    });
    let (split, _) = (1..runs.len())
        .zip(unevenness)
        .min_by_key(|(_, unevenness)| *unevenness)
        .expect("a single run is no choice");
    split
}

/// What a program makes of every call: runs of architectures, for each the runs of numbers. Neighbours differ, so that
/// for each program there is one meaning.
#[derive(Debug, PartialEq, Eq)]
struct Meaning(Vec<Run<Vec<Run<Node>>>>);

impl Meaning {
    /// Follow the program with the lowest architecture and number, which tells how far the same holds, then with the
    /// next ones. None when it cannot be followed.
    fn of(program: &[Instruction], graph: &mut Graph) -> Option<Self> {
        let mut architectures = Vec::new();
        let mut next = Some(0);
        while let Some(first) = next {
            let mut arch = Span::from(first);
            let mut numbers = Vec::new();
            let mut next_number = Some(0);
            while let Some(first) = next_number {
                let mut walk = Walk {
                    program,
                    arch,
                    number: Span::from(first),
                };
                let then = walk.node(graph)?;
                extend(&mut numbers, Run { first, then });
                arch = walk.arch;
                next_number = walk.number.last.checked_add(1);
            }
            let then = numbers;
            extend(&mut architectures, Run { first, then });
            next = arch.last.checked_add(1);
        }
        Some(Self(architectures))
    }

    /// The node from which every call is led to what it means.
    fn search(&self, graph: &mut Graph) -> Node {
        let mut architectures = Vec::new();
        for Run { first, then } in &self.0 {
            let then = graph.search(Word::NUMBER, then, u32::MAX);
            extend(
                &mut architectures,
                Run {
                    first: *first,
                    then,
                },
            );
        }
        graph.search(Word::ARCH, &architectures, u32::MAX)
    }
}

/// Append a run, unless it only continues the last one.
fn extend<T: PartialEq>(runs: &mut Vec<Run<T>>, run: Run<T>) {
    if runs.last().is_none_or(|last| last.then != run.then) {
        runs.push(run);
    }
}

/// A value that a program is followed with, and the last one with which it would have been the same way.
#[derive(Clone, Copy)]
struct Span {
    first: u32,
    last: u32,
}

impl Span {
    fn from(first: u32) -> Self {
        Self {
            first,
            last: u32::MAX,
        }
    }

    /// How the comparison with `value` turns out. None when the answer does not hold for ranges.
    fn compare(&mut self, when: Comparison, value: u32) -> Option<bool> {
        // Whether the answer is yes, and the last number for which it is the same.
        let (holds, last) = match when {
            Comparison::Equal if self.first == value => (true, value),
            Comparison::Equal if self.first < value => (false, value - 1),
            Comparison::Equal => (false, u32::MAX),
            Comparison::Above if self.first > value => (true, u32::MAX),
            Comparison::Above => (false, value),
            Comparison::AtLeast if self.first >= value => (true, u32::MAX),
            Comparison::AtLeast => (false, value - 1),
            Comparison::AnyBit => return None,
        };
        self.last = self.last.min(last);
        Some(holds)
    }
}

/// The index of an instruction, and what has been loaded when it is reached.
type Place = (usize, Option<Word>);

/// A program on its way with one architecture and one number, whatever the arguments.
struct Walk<'program> {
    program: &'program [Instruction],
    arch: Span,
    number: Span,
}

impl Walk<'_> {
    /// What the program makes of the call. None when it has something that is not understood here.
    fn node(&mut self, graph: &mut Graph) -> Option<Node> {
        const START: Place = (0, None);
        // Jumps lead only forward: in the order of places each test stands before those that it leads to.
        let mut waiting = BTreeSet::from([START]);
        let mut outcomes = BTreeMap::new();
        while let Some(place) = waiting.pop_first() {
            let outcome = self.outcome(place)?;
            if let Outcome::Test(Test { yes, no, .. }) = outcome {
                waiting.extend([yes, no]);
            }
            outcomes.insert(place, outcome);
        }
        let mut nodes = BTreeMap::new();
        for (place, outcome) in outcomes.into_iter().rev() {
            let node = graph.node(match outcome {
                Outcome::Verdict(verdict) => Outcome::Verdict(verdict),
                Outcome::Test(Test {
                    word,
                    when,
                    value,
                    yes,
                    no,
                }) => Outcome::Test(Test {
                    word,
                    when,
                    value,
                    yes: nodes[&yes],
                    no: nodes[&no],
                }),
            });
            nodes.insert(place, node);
        }
        nodes.get(&START).copied()
    }

    /// The first thing behind `place` that neither architecture nor number decides.
    fn outcome(&mut self, (mut at, mut loaded): Place) -> Option<Outcome<Place>> {
        loop {
            let instruction = *self.program.get(at)?;
            at += 1;
            match instruction {
                Instruction::Load(offset) => loaded = Some(Word::whole(offset)),
                Instruction::And(mask) => loaded.as_mut()?.mask &= mask,
                Instruction::Skip(count) => at = at.checked_add(usize::try_from(count).ok()?)?,
                Instruction::Return(verdict) => return Some(Outcome::Verdict(verdict)),
                Instruction::Jump {
                    when,
                    value,
                    yes,
                    no,
                } => {
                    let (yes, no) = (at + usize::from(yes), at + usize::from(no));
                    let word = loaded?;
                    let holds = match word {
                        Word::ARCH => self.arch.compare(when, value)?,
                        Word::NUMBER => self.number.compare(when, value)?,
                        // Single bits make no ranges.
                        Word {
                            offset: ARCH | NUMBER,
                            ..
                        } => return None,
                        _ => {
                            return Some(Outcome::Test(Test {
                                word,
                                when,
                                value,
                                yes: (yes, loaded),
                                no: (no, loaded),
                            }));
                        }
                    };
                    at = if holds { yes } else { no };
                }
            }
        }
    }
}

/// The program that begins at this node.
fn assemble(graph: &Graph, start: Node) -> Vec<Instruction> {
    // Which tests are come upon with another word loaded, or none.
    let mut reached = BTreeSet::from([start]);
    let mut unloaded = BTreeSet::from([start]);
    for node in (0..=start.0).rev().map(Node) {
        if let (true, Outcome::Test(test)) = (reached.contains(&node), graph.outcome(node)) {
            for next in [test.yes, test.no] {
                reached.insert(next);
                if Entry::coming_from(test.word, graph, next) == Entry::Load(next) {
                    unloaded.insert(next);
                }
            }
        }
    }

    let mut assembler = Assembler::default();
    if let Outcome::Verdict(verdict) = graph.outcome(start) {
        assembler.backward.push(Instruction::Return(verdict));
    }
    for node in reached {
        // A verdict is given where a jump asks for it.
        let Outcome::Test(test) = graph.outcome(node) else {
            continue;
        };
        assembler.jump(graph, &test);
        assembler.enter(Entry::Test(node));
        if unloaded.contains(&node) {
            if test.word.mask != u32::MAX {
                assembler.backward.push(Instruction::And(test.word.mask));
            }
            let load = Instruction::Load(test.word.offset);
            assembler.backward.push(load);
            assembler.enter(Entry::Load(node));
        }
    }
    assembler.backward.reverse();
    assembler.backward
}

/// Where to enter a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Entry {
    /// Before its word is loaded.
    Load(Node),
    /// With the word already loaded.
    Test(Node),
    /// There is nothing to load.
    Verdict(u32),
}

impl Entry {
    /// The entry for who has `word` loaded.
    fn coming_from(word: Word, graph: &Graph, node: Node) -> Self {
        match graph.outcome(node) {
            Outcome::Verdict(verdict) => Self::Verdict(verdict),
            Outcome::Test(test) if test.word == word => Self::Test(node),
            Outcome::Test(_) => Self::Load(node),
        }
    }
}

/// Instructions from the last to the first: all jumps lead forward, so a jump is written when the places it leads to
/// are known. Places are counted from the end.
#[derive(Default)]
struct Assembler {
    backward: Vec<Instruction>,
    /// Where each entry is.
    entries: HashMap<Entry, usize>,
    /// The foremost instruction that leads to each: itself, a skip, or for a verdict one of several that give it.
    nearest: HashMap<Entry, usize>,
}

impl Assembler {
    /// The entry is the foremost instruction so far.
    fn enter(&mut self, entry: Entry) {
        let place = self.backward.len() - 1;
        self.entries.insert(entry, place);
        self.nearest.insert(entry, place);
    }

    /// How many instructions to skip from one written now to one written before.
    fn distance(&self, place: usize) -> usize {
        self.backward.len() - 1 - place
    }

    fn jump(&mut self, graph: &Graph, test: &Test<Node>) {
        let yes = Entry::coming_from(test.word, graph, test.yes);
        let no = Entry::coming_from(test.word, graph, test.no);
        let near = |assembler: &Self, entry| {
            let place = assembler.nearest.get(&entry)?;
            u8::try_from(assembler.distance(*place)).ok()
        };
        // What is brought near for one answer can put the other out of reach, but only once.
        let (yes, no) = loop {
            match (near(self, yes), near(self, no)) {
                (Some(yes), Some(no)) => break (yes, no),
                (None, _) => self.bring(yes),
                (_, None) => self.bring(no),
            }
        };
        self.backward.push(Instruction::Jump {
            when: test.when,
            value: test.value,
            yes,
            no,
        });
    }

    /// Write what leads to this entry, for jumps that would not reach it.
    fn bring(&mut self, entry: Entry) {
        let instruction = match entry {
            Entry::Verdict(verdict) => Instruction::Return(verdict),
            Entry::Load(_) | Entry::Test(_) => {
                let distance = self.distance(self.entries[&entry]);
                Instruction::Skip(u32::try_from(distance).expect("a program is not that long"))
            }
        };
        self.backward.push(instruction);
        self.nearest.insert(entry, self.backward.len() - 1);
    }
}

#[cfg(test)]
mod tests {
    use libseccomp::{ScmpArch, ScmpSyscall};
    use serde_json::{Value, json};

    use super::super::generate;
    use super::super::tests::{Verdict, X86, X86_64, run};
    use super::*;

    /// Numbers that look random and are the same in every run (xorshift64).
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }

        fn below(&mut self, bound: usize) -> usize {
            usize::try_from(self.roll() % bound as u64).unwrap()
        }

        fn pick<T: Clone>(&mut self, from: &[T]) -> T {
            from[self.below(from.len())].clone()
        }

        fn one_in(&mut self, chances: usize) -> bool {
            self.below(chances) == 0
        }
    }

    const ARM: u32 = ScmpArch::Arm as u32;
    const X32_BIT: u32 = 0x4000_0000;
    /// Those of the profiles, and some that none of them has.
    const ARCHITECTURES: [u32; 8] = [
        X86_64,
        X86,
        ARM,
        ScmpArch::Aarch64 as u32,
        ScmpArch::Riscv64 as u32,
        ScmpArch::S390X as u32,
        0,
        u32::MAX,
    ];
    const OPERATORS: [&str; 7] = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
    const ACTIONS: [(&str, Option<u32>); 9] = [
        ("ALLOW", None),
        ("LOG", None),
        ("KILL", None),
        ("KILL_PROCESS", None),
        ("TRAP", None),
        ("ERRNO", None),
        ("ERRNO", Some(38)),
        ("ERRNO", Some(4094)),
        ("TRACE", Some(65535)),
    ];
    const VALUES: [u64; 7] = [
        0,
        1,
        0xf0,
        0x7e02_0000,
        0xffff_ffff,
        0x8000_0001_0000_0000,
        u64::MAX,
    ];

    /// A profile with rules of every kind. A call has one action, since libseccomp refuses contradictions.
    fn random_profile(dice: &mut Dice) -> Value {
        let named = |nr: i32| ScmpSyscall::from(nr).get_name().ok();
        let names: Vec<String> = (0..480).filter_map(named).collect();
        let gap = dice.pick(&[1, 2, 5, 30]);
        let usual = dice.pick(&ACTIONS);
        let mut rules = Vec::new();
        for name in names {
            if dice.one_in(gap + 1) {
                continue;
            }
            let (action, errno) = if dice.one_in(4) {
                dice.pick(&ACTIONS)
            } else {
                usual
            };
            let args: Vec<Value> = (0..if dice.one_in(20) {
                1 + dice.below(3)
            } else {
                0
            })
                .map(|_| {
                    let operator = dice.pick(&OPERATORS);
                    json!({
                        "index": dice.below(6),
                        "op": format!("SCMP_CMP_{operator}"),
                        "value": dice.pick(&VALUES),
                        "valueTwo": dice.pick(&VALUES),
                    })
                })
                .collect();
            rules.push(json!({
                "names": [name],
                "action": format!("SCMP_ACT_{action}"),
                "errnoRet": errno,
                "args": args,
            }));
        }
        if dice.one_in(3) {
            rules.truncate(1 + dice.below(40));
        }
        let (default, errno) = dice.pick(&ACTIONS);
        let architectures: &[&str] = dice.pick(&[
            &[],
            &["X86"],
            &["X32"],
            &["X86", "X32"],
            &["X86", "X86_64", "X32", "ARM", "AARCH64", "RISCV64"],
        ]);
        json!({
            "defaultAction": format!("SCMP_ACT_{default}"),
            "defaultErrnoRet": errno,
            "architectures": architectures
                .iter()
                .map(|name| format!("SCMP_ARCH_{name}"))
                .collect::<Vec<_>>(),
            "syscalls": rules,
        })
    }

    fn length(bpf: &[u8]) -> usize {
        bpf.len() / INSTRUCTION_SIZE
    }

    /// The numbers on x86 of the calls whose arguments the profile looks at.
    fn conditional(profile: &Value) -> Vec<(u32, u32)> {
        let rules = profile["syscalls"].as_array().into_iter().flatten();
        rules
            .filter(|rule| rule["args"] != json!([]))
            .filter_map(|rule| rule["names"][0].as_str())
            .flat_map(|name| {
                [ScmpArch::X8664, ScmpArch::X32, ScmpArch::X86].map(|arch| {
                    let number = ScmpSyscall::from_name_by_arch(name, arch).ok()?;
                    let token = if arch == ScmpArch::X86 { X86 } else { X86_64 };
                    Some((token, u32::try_from(number.as_raw_syscall()).ok()?))
                })
            })
            .flatten()
            .collect()
    }

    #[test]
    fn every_call_gets_the_verdict_that_it_had() {
        let near: Vec<u64> = VALUES
            .iter()
            .flat_map(|value| [value.wrapping_sub(1), *value, value.wrapping_add(1)])
            .chain(VALUES)
            .collect();
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
        let mut shorter = 0;
        for round in 0..20 {
            let profile = random_profile(&mut dice);
            // Some combinations of conditions are more than libseccomp takes.
            let Ok(before) = generate(&serde_json::from_value(profile.clone()).unwrap()) else {
                continue;
            };
            let Some(after) = compact(&before) else {
                continue;
            };
            assert!(length(&after) < length(&before));
            shorter += 1;

            let mut same = |arch, number| {
                let args = [(); 6].map(|()| dice.pick(&near));
                assert_eq!(
                    run(&after, arch, number, args),
                    run(&before, arch, number, args),
                    "profile {round}, call {number:#x} of {arch:#x} with {args:x?}"
                );
            };
            for arch in ARCHITECTURES {
                let ends = [X32_BIT - 1, 0xf_0000, 0xf_0002, 1 << 31, u32::MAX];
                (0..600).for_each(|number| same(arch, number));
                (X32_BIT..X32_BIT + 600).for_each(|number| same(arch, number));
                ends.into_iter().for_each(|number| same(arch, number));
            }
            for (arch, number) in conditional(&profile) {
                (0..100).for_each(|_| same(arch, number));
            }
        }
        assert!(shorter > 15, "{shorter} profiles have become shorter");
    }

    /// Any program of instructions understood here, most of them unlike what libseccomp writes.
    fn random_program(dice: &mut Dice) -> Vec<Instruction> {
        const LENGTH: usize = 40;
        let numbers = [0, 1, 2, 3, 5, 8, 9, X32_BIT, u32::MAX];
        let arguments = [0, 1, 2, 0x80, u32::MAX];
        let mut program = Vec::new();
        let mut loaded = ARCH;
        program.push(Instruction::Load(loaded));
        while program.len() < LENGTH - 4 {
            let left = LENGTH - 5 - program.len();
            let skip = |dice: &mut Dice| u8::try_from(dice.below(left.min(6) + 1)).unwrap();
            program.push(match dice.below(8) {
                0 | 1 => {
                    loaded = dice.pick(&[ARCH, NUMBER, NUMBER, 16, 20, 24]);
                    Instruction::Load(loaded)
                }
                2 if loaded >= 16 => Instruction::And(dice.pick(&[1, 3, 0x80])),
                3 => Instruction::Skip(skip(dice).into()),
                4 => Instruction::Return(libc::SECCOMP_RET_ERRNO | dice.pick(&[1, 2, 3])),
                _ => Instruction::Jump {
                    when: dice.pick(&[
                        Comparison::Equal,
                        Comparison::Above,
                        Comparison::AtLeast,
                        Comparison::AnyBit,
                    ]),
                    value: match loaded {
                        ARCH => dice.pick(&[ARM, X86, X86_64]),
                        NUMBER => dice.pick(&numbers),
                        _ => dice.pick(&arguments),
                    },
                    yes: skip(dice),
                    no: skip(dice),
                },
            });
        }
        program.resize(LENGTH, Instruction::Return(libc::SECCOMP_RET_ALLOW));
        program
    }

    #[test]
    fn programs_of_any_shape_keep_their_meaning() {
        let mut dice = Dice(42);
        let mut shorter = 0;
        for round in 0..2000 {
            let program = random_program(&mut dice);
            let before: Vec<u8> = program.iter().flat_map(|i| i.bytes()).collect();
            let Some(after) = compact(&before) else {
                continue;
            };
            shorter += 1;
            for arch in [0, ARM, X86, X86_64, X86_64 + 1] {
                for number in [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, X32_BIT, u32::MAX] {
                    for first in [0, 1, 2, 3, 0x80, 0x81, u64::MAX] {
                        let args = [first, dice.pick(&[0, 2, 0x80, u64::MAX]), 0, 0, 0, 0];
                        assert_eq!(
                            run(&after, arch, number, args),
                            run(&before, arch, number, args),
                            "program {round}, call {number:#x} of {arch:#x} with {args:x?}"
                        );
                    }
                }
            }
        }
        assert!(shorter > 500, "{shorter} programs have become shorter");
    }

    #[test]
    fn ranges_take_the_place_of_single_numbers() {
        let named = |nr: i32| ScmpSyscall::from(nr).get_name().ok();
        let names: Vec<String> = (0..450)
            .filter(|nr| nr % 20 != 0)
            .filter_map(named)
            .collect();
        let profile = serde_json::from_value(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64"],
            "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}],
        }))
        .unwrap();
        let before = generate(&profile).unwrap();
        let after = compact(&before).unwrap();
        assert!(
            length(&after) * 3 < length(&before),
            "{} instructions, then {}",
            length(&before),
            length(&after)
        );
        assert_eq!(compact(&after), None, "nothing is left to be shortened");
    }

    #[test]
    fn what_is_not_understood_stays() {
        let allow = Instruction::Return(libc::SECCOMP_RET_ALLOW);
        let errno = Instruction::return_errno(nix::errno::Errno::EPERM);
        let jump = |when| Instruction::Jump {
            when,
            value: 1,
            yes: 1,
            no: 0,
        };
        let bits = [Instruction::Load(NUMBER), jump(Comparison::AnyBit)];
        let masked = [
            Instruction::Load(NUMBER),
            Instruction::And(1),
            jump(Comparison::Equal),
        ];
        let unloaded = [jump(Comparison::Equal)];
        let too_far = [Instruction::Skip(3)];
        for start in [&bits[..], &masked, &unloaded, &too_far] {
            let program = [start, &[allow, errno, errno]].concat();
            let bpf: Vec<u8> = program.iter().flat_map(|i| i.bytes()).collect();
            assert_eq!(compact(&bpf), None, "{start:?}");
        }
        // Scratch memory (BPF_ST), and half an instruction.
        let store = [2_u16.to_ne_bytes(), [0; 2], [0; 2], [0; 2]].concat();
        assert_eq!(compact(&[&store[..], &allow.bytes()].concat()), None);
        assert_eq!(compact(&allow.bytes()[..4]), None);
    }

    #[test]
    fn jumps_reach_what_lies_farther_than_they_can_tell() {
        // Every number has its own verdict: the search is longer than 255 instructions on either side.
        let numbers = 0..1500_u32;
        let mut program = vec![Instruction::Load(NUMBER)];
        for number in numbers.clone() {
            program.push(Instruction::Jump {
                when: Comparison::Equal,
                value: number * 2,
                yes: 0,
                no: 1,
            });
            program.push(Instruction::Return(libc::SECCOMP_RET_ERRNO + number));
        }
        program.push(Instruction::Return(libc::SECCOMP_RET_ALLOW));
        let mut graph = Graph::default();
        let meaning = Meaning::of(&program, &mut graph).unwrap();
        let start = meaning.search(&mut graph);
        let bpf: Vec<u8> = assemble(&graph, start)
            .into_iter()
            .flat_map(Instruction::bytes)
            .collect();
        for number in numbers {
            let verdict = |nr| run(&bpf, X86, nr, [0; 6]);
            assert_eq!(verdict(number * 2), Verdict::Errno(number));
            assert_eq!(verdict(number * 2 + 1), Verdict::Allow);
        }
    }
}
