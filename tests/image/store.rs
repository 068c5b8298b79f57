//! The store: names, crash rules, locks, and two commands at one piece of work.
