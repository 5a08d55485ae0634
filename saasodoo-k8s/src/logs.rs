//! The log of an instance's pod.
