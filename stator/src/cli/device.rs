//! `--device`.

use std::str::FromStr;

/// What computes a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// Our own kernels on this machine's CPU.
    Cpu,
    /// Our own kernels on an NVIDIA GPU.
    Cuda {
        /// As the driver counts them.
        ordinal: u32,
    },
    /// candle on this machine's CPU: to compare with, and slow.
    CandleCpu,
    /// candle on an NVIDIA GPU: to compare with, and for models that our kernels do not compute.
    CandleCuda {
        /// As the driver counts them.
        ordinal: usize,
    },
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, ordinal) = match text.split_once(':') {
            Some((kind, ordinal)) => (kind, ordinal.parse().ok()),
            None => (text, Some(0)),
        };
        match (kind, ordinal) {
            ("cpu", Some(0)) if text == "cpu" => Ok(Self::Cpu),
            ("candle-cpu", Some(0)) if text == "candle-cpu" => Ok(Self::CandleCpu),
            ("cuda", Some(ordinal)) => Ok(Self::Cuda { ordinal }),
            ("candle-cuda", Some(ordinal)) => Ok(Self::CandleCuda { ordinal: ordinal as usize }),
            _ => Err("expected cpu, cuda or cuda:N, where CUDA counts GPUs from 0".into()),
        }
    }
}

impl Device {
    /// Why this build cannot use it: a sentence.
    pub fn check(self) -> Result<(), String> {
        match self {
            Self::CandleCuda { .. } if !cfg!(feature = "cuda") => Err(
                "this stator was built without candle's CUDA kernels; build one with them (cargo \
                 build --release --features cuda, where the CUDA toolkit is: docs/gpu.md), or use \
                 --device cuda"
                    .into(),
            ),
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
        check("candle-cuda:1", Some(Device::CandleCuda { ordinal: 1 }));
        for wrong in ["candle-cpu:0", "", "gpu", "CUDA", "cuda:", "cuda:-1", "cuda:x", "cpu:0"] {
            check(wrong, None);
        }
    }

    #[test]
    fn what_this_build_lacks_is_refused_with_what_to_do() {
        assert_eq!(Device::Cpu.check(), Ok(()));
        assert_eq!(Device::Cuda { ordinal: 0 }.check(), Ok(()), "every build has it");
        let has = [cfg!(feature = "cuda"), cfg!(feature = "candle")];
        for (device, has) in [Device::CandleCuda { ordinal: 0 }, Device::CandleCpu].iter().zip(has)
        {
            let refusal = device.check().err();
            assert_eq!(refusal.is_none(), has, "{device:?}");
            assert!(refusal.is_none_or(|sentence| sentence.contains("--features c")));
        }
    }
}
