pub(crate) mod cache;
