//! Which wheels libtorch is taken from, and which of their files.

use std::fmt;
use std::path::Path;

/// The version that tch 0.26 is made for; torch-sys refuses others.
pub const VERSION: &str = "2.13.0";

/// With or without CUDA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    Cpu,
    Cuda,
}

/// libtorch_cpu.so of PyPI's wheel needs the last two even where there is no GPU.
const CPU_WHEELS: [&str; 3] = ["torch==2.13.0", "nvidia-cuda-runtime==13.0.96", "nvidia-cuda-cupti==13.0.85"];

/// What torch 2.13.0 and cuda-toolkit 13.0.3 pin, spelled out: resolving it anew would bring triton and a dozen Python
/// packages that libtorch has no use for.
const CUDA_WHEELS: [&str; 16] = [
    "torch==2.13.0",
    "nvidia-cublas==13.1.1.3",
    "nvidia-cuda-cupti==13.0.85",
    "nvidia-cuda-nvrtc==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cudnn-cu13==9.20.0.48",
    "nvidia-cufft==12.0.0.61",
    "nvidia-cufile==1.15.1.6",
    "nvidia-curand==10.4.0.35",
    "nvidia-cusolver==12.0.4.66",
    "nvidia-cusparse==12.6.3.3",
    "nvidia-cusparselt-cu13==0.8.1",
    "nvidia-nccl-cu13==2.29.7",
    "nvidia-nvjitlink==13.0.88",
    "nvidia-nvshmem-cu13==3.4.5",
    "nvidia-nvtx==13.0.85",
];

impl Flavour {
    /// Its folder in the cache.
    pub fn folder_name(self) -> String {
        match self {
            Self::Cpu => format!("libtorch-{VERSION}-cpu"),
            Self::Cuda => format!("libtorch-{VERSION}-cuda"),
        }
    }

    /// As pip takes them.
    pub fn wheels(self) -> &'static [&'static str] {
        match self {
            Self::Cpu => &CPU_WHEELS,
            Self::Cuda => &CUDA_WHEELS,
        }
    }

    /// What pip will have downloaded at the end.
    pub fn download_bytes(self) -> u64 {
        match self {
            Self::Cpu => 539_564_522,
            Self::Cuda => 2_500_000_000,
        }
    }

    /// Pip holds each wheel twice for a moment; afterwards the wheels and what is unpacked from them lie side by side.
    pub fn needed_bytes(self) -> u64 {
        match self {
            Self::Cpu => 1_100_000_000,
            Self::Cuda => 7_000_000_000,
        }
    }

    /// Whether this file of a wheel is part of libtorch. The paths stay as they are: the wheels' run paths rely on them.
    pub fn wants(self, file: &Path) -> bool {
        if file.starts_with("torch/include") {
            return true;
        }
        match self {
            Self::Cpu => [
                "torch/lib/libtorch_cpu.so",
                "torch/lib/libc10.so",
                "torch/lib/libgomp.so.1",
                "nvidia/cu13/lib/libcudart.so.13",
                "nvidia/cu13/lib/libcupti.so.13",
            ]
            .iter()
            .any(|wanted| file == Path::new(wanted)),
            Self::Cuda => {
                let of_nvidia = file.starts_with("nvidia") && file.iter().nth(2).is_some_and(|folder| folder == "lib");
                file.starts_with("torch/lib") || of_nvidia
            }
        }
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "CPU",
            Self::Cuda => "CUDA",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_set_is_five_libraries_and_the_headers() {
        let wanted = |file| Flavour::Cpu.wants(Path::new(file));
        assert!(wanted("torch/include/torch/extension.h"));
        assert!(wanted("torch/lib/libtorch_cpu.so"));
        assert!(wanted("nvidia/cu13/lib/libcudart.so.13"));
        assert!(!wanted("torch/lib/libtorch_cuda.so"));
        assert!(!wanted("torch/__init__.py"));
        assert!(!wanted("nvidia/cu13/include/cuda.h"));
    }

    #[test]
    fn the_cuda_set_has_every_library() {
        let wanted = |file| Flavour::Cuda.wants(Path::new(file));
        assert!(wanted("torch/lib/libtorch_cuda.so"));
        assert!(wanted("nvidia/cudnn/lib/libcudnn.so.9"));
        assert!(wanted("nvidia/cu13/lib/libcublas.so.13"));
        assert!(!wanted("nvidia/cu13/include/cuda.h"));
        assert!(!wanted("torch/testing/__init__.py"));
    }

    #[test]
    fn the_wheels_are_of_the_version() {
        for flavour in [Flavour::Cpu, Flavour::Cuda] {
            assert!(flavour.wheels().contains(&format!("torch=={VERSION}").as_str()));
        }
    }
}
