//! Decorators: an orchestrator around an orchestrator.
//!
//! Put them in this order, from the outside in: traced, retrying, deadlined, the backend. A deadline outside
//! of the retries would cut them short; a span inside of them would show each attempt as a call of the user.
