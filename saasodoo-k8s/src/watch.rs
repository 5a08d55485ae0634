//! One watch shared by all callers.
