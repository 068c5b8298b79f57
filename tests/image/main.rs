//! Black-box tests of the companion. One binary: it is linked once, and can be copied to another machine.

#[macro_use]
mod support;

mod bundle;
mod cli;
mod df;
mod documents;
mod export;
mod fsck;
mod hostile;
mod import;
mod names;
mod prune;
mod registry;
mod run;
mod store;
mod storm;
mod tour;
mod unpack;
mod volume;
