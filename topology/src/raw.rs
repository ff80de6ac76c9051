//! What of the driver's library nvml-wrapper does not reach.

use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::{
    field_id, nvmlFieldValue_t, nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_SWITCH,
    nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_UNKNOWN, nvmlMemory_t,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG,
};

/// All links of a GPU, where a field is one link's otherwise.
pub const ALL_LINKS: u32 = u32::MAX;

/// Bytes of a GPU's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total_bytes: u64,
    /// That someone uses.
    pub used_bytes: u64,
}

/// Memory, also from drivers before 510, which know the first version of the question alone.
pub fn memory(nvml: &Nvml, device: &Device<'_>) -> Result<Memory, NvmlError> {
    match device.memory_info() {
        Ok(info) => return Ok(Memory { total_bytes: info.total, used_bytes: info.used }),
        Err(NvmlError::FailedToLoadSymbol(_) | NvmlError::FunctionNotFound) => {}
        Err(error) => return Err(error),
    }
    let ask = nvml_sym(nvml.lib().nvmlDeviceGetMemoryInfo.as_ref())?;
    let mut info = nvmlMemory_t { total: 0, free: 0, used: 0 };
    // SAFETY: the handle is that of a device of this library, and `info` outlives the call.
    nvml_try(unsafe { ask(device.handle(), &mut info) })?;
    Ok(Memory { total_bytes: info.total, used_bytes: info.used })
}

/// Whether a link goes to a switch. (nvml-wrapper's own function always says "unknown".)
pub fn goes_to_switch(nvml: &Nvml, device: &Device<'_>, link: u32) -> Result<bool, NvmlError> {
    let ask = nvml_sym(nvml.lib().nvmlDeviceGetNvLinkRemoteDeviceType.as_ref())?;
    let mut kind = nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_UNKNOWN;
    // SAFETY: the handle is that of a device of this library, and `kind` outlives the call.
    nvml_try(unsafe { ask(device.handle(), link, &mut kind) })?;
    Ok(kind == nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_SWITCH)
}

/// What a link carries each way, in units of 10^6 bytes per second; none where the driver does not say.
pub fn link_mbytes_per_s(nvml: &Nvml, device: &Device<'_>, link: u32) -> Option<u64> {
    // Two numberings for older drivers, which count twelve links at most; newer ones take the link apart.
    let field = match link {
        0..=5 => field_id::NVML_FI_DEV_NVLINK_SPEED_MBPS_L0 + link,
        6..=11 => field_id::NVML_FI_DEV_NVLINK_SPEED_MBPS_L6 + (link - 6),
        _ => field_id::NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON,
    };
    let asked = [(field_id::NVML_FI_DEV_NVLINK_GET_SPEED, link), (field, 0)];
    let speeds = asked.map(|(field, scope)| field_value(nvml, device, field, scope).ok());
    speeds.into_iter().flatten().find(|speed| *speed > 0)
}

/// Bytes that went over all NVLinks since the driver was loaded: sent, and received.
pub fn nvlink_bytes(nvml: &Nvml, device: &Device<'_>) -> Result<(u64, u64), NvmlError> {
    let kib = |field| field_value(nvml, device, field, ALL_LINKS);
    let sent = kib(field_id::NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX)?;
    let received = kib(field_id::NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX)?;
    Ok((sent.saturating_mul(1024), received.saturating_mul(1024)))
}

/// One of the driver's numbered fields, of a part of the GPU. Errors: it is not there, or no count.
fn field_value(nvml: &Nvml, device: &Device<'_>, field: u32, scope: u32) -> Result<u64, NvmlError> {
    let ask = nvml_sym(nvml.lib().nvmlDeviceGetFieldValues.as_ref())?;
    // SAFETY: plain data, for which all zeros are a value.
    let mut value: nvmlFieldValue_t = unsafe { std::mem::zeroed() };
    (value.fieldId, value.scopeId) = (field, scope);
    // SAFETY: the handle is that of a device of this library, and there is one value, as is said.
    nvml_try(unsafe { ask(device.handle(), 1, &mut value) })?;
    nvml_try(value.nvmlReturn)?;
    // SAFETY: each read is of the member that the library says it has written; all bits are a value.
    unsafe {
        #[allow(non_upper_case_globals)]
        match value.valueType {
            nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT => Ok(u64::from(value.value.uiVal)),
            nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG => Ok(value.value.ulVal),
            nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG => Ok(value.value.ullVal),
            other => Err(NvmlError::UnexpectedVariant(other)),
        }
    }
}
