//! Prune on a registry's storage tree.
