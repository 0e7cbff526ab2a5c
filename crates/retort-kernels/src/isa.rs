//! Which vector instructions the kernels use.

use std::cell::Cell;
use std::sync::OnceLock;

/// A family of vector instructions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[non_exhaustive]
pub enum InstructionSet {
    /// What the compiler makes of plain loops for the build's target.
    Portable,
    /// x86-64 with AVX2 and fused multiply-add.
    Avx2Fma,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
}

impl InstructionSet {
    /// True if the processor can run it.
    #[must_use]
    pub fn is_supported(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2Fma => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2Fma.is_supported()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The largest supported set that is not larger than this one.
    fn or_lower(self) -> Self {
        [Self::Avx512, Self::Avx2Fma]
            .into_iter()
            .find(|set| *set <= self && set.is_supported())
            .unwrap_or(Self::Portable)
    }

    fn from_name(name: &str) -> Option<Self> {
        match name {
            "avx512" => Some(Self::Avx512),
            "avx2" => Some(Self::Avx2Fma),
            "portable" => Some(Self::Portable),
            _ => None,
        }
    }
}

thread_local! {
    static OVERRIDE: Cell<Option<InstructionSet>> = const { Cell::new(None) };
}

/// The instruction set of this process, chosen once, at the first call.
///
/// It is the best that the processor supports.
/// The environment variable `RETORT_ISA` (`avx512`, `avx2` or `portable`) sets an upper bound: a set that the
/// processor lacks gives the best supported one below it.
/// Any other value is ignored.
/// Results of two sets differ in the last bits.
#[must_use]
pub fn instruction_set() -> InstructionSet {
    static CHOSEN: OnceLock<InstructionSet> = OnceLock::new();
    *CHOSEN.get_or_init(|| choose(std::env::var("RETORT_ISA").ok().as_deref()))
}

fn choose(wanted: Option<&str>) -> InstructionSet {
    wanted.and_then(InstructionSet::from_name).unwrap_or(InstructionSet::Avx512).or_lower()
}

/// The set for an operation that starts on this thread.
pub(crate) fn current() -> InstructionSet {
    OVERRIDE.get().unwrap_or_else(instruction_set)
}

/// Runs `f` with another instruction set on this thread, for tests and benches.
///
/// A set that the processor lacks is lowered by the rule of [`instruction_set`].
#[doc(hidden)]
pub fn with_instruction_set<R>(set: InstructionSet, f: impl FnOnce() -> R) -> R {
    struct Restore(Option<InstructionSet>);
    impl Drop for Restore {
        fn drop(&mut self) {
            OVERRIDE.set(self.0);
        }
    }
    let _restore = Restore(OVERRIDE.replace(Some(set.or_lower())));
    f()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_is_an_upper_bound_and_nonsense_is_ignored() {
        assert_eq!(choose(Some("portable")), InstructionSet::Portable);
        assert_eq!(choose(Some("sse9")), choose(None));
        assert!(choose(Some("avx2")) <= InstructionSet::Avx2Fma);
        assert!(choose(Some("avx512")).is_supported());
    }

    #[test]
    fn the_override_ends_with_its_scope() {
        let inside = with_instruction_set(InstructionSet::Portable, current);
        assert_eq!(inside, InstructionSet::Portable);
        assert_eq!(current(), instruction_set());
    }
}
