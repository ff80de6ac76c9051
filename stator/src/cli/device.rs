//! `--device`.

use std::str::FromStr;

/// What computes a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// Our own kernels on this machine's CPU.
    Cpu,
    /// An NVIDIA GPU.
    Cuda {
        /// As the driver counts them.
        ordinal: usize,
    },
    /// What computes on a GPU, on this machine's CPU: to compare with, and slow.
    CandleCpu,
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ordinal = text.strip_prefix("cuda:").map(str::parse);
        match (text, ordinal) {
            ("cpu", _) => Ok(Self::Cpu),
            ("candle-cpu", _) => Ok(Self::CandleCpu),
            ("cuda", _) => Ok(Self::Cuda { ordinal: 0 }),
            (_, Some(Ok(ordinal))) => Ok(Self::Cuda { ordinal }),
            _ => Err("expected cpu, cuda or cuda:N, as nvidia-smi counts GPUs from 0".into()),
        }
    }
}

impl Device {
    /// Why this build cannot use it: a sentence.
    pub fn check(self) -> Result<(), String> {
        match self {
            Self::Cuda { .. } if !cfg!(feature = "cuda") => {
                Err("this stator was built without CUDA; build one with it (cargo build --release \
                 --features cuda, where the CUDA toolkit is: docs/gpu.md), or use --device cpu"
                    .into())
            }
            Self::CandleCpu if !cfg!(feature = "candle") => Err(
                "this stator was built without candle; build one with it (cargo build --release \
                 --features candle), or use --device cpu"
                    .into(),
            ),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        let check = |text: &str, expected| assert_eq!(text.parse().ok(), expected, "{text}");
        check("cpu", Some(Device::Cpu));
        check("candle-cpu", Some(Device::CandleCpu));
        check("cuda", Some(Device::Cuda { ordinal: 0 }));
        check("cuda:3", Some(Device::Cuda { ordinal: 3 }));
        for wrong in ["", "gpu", "CUDA", "cuda:", "cuda:-1", "cuda:x", "cpu:0"] {
            check(wrong, None);
        }
    }

    #[test]
    fn what_this_build_lacks_is_refused_with_what_to_do() {
        assert_eq!(Device::Cpu.check(), Ok(()));
        let has = [cfg!(feature = "cuda"), cfg!(feature = "candle")];
        for (device, has) in [Device::Cuda { ordinal: 0 }, Device::CandleCpu].iter().zip(has) {
            let refusal = device.check().err();
            assert_eq!(refusal.is_none(), has, "{device:?}");
            assert!(refusal.is_none_or(|sentence| sentence.contains("--features c")));
        }
    }
}
