//! The contract suite: the behaviours that the trait promises, run against any backend.
