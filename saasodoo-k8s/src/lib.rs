//! Not written yet.

#[allow(dead_code)]
mod views;
