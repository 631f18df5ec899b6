//! What the blocks of one tensor need on a device: put there with the first of them.

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::CudaSlice;
use sparse_codec::{CodingTables, Moved};

use crate::steps::DeviceMoved;
use crate::strips::{DeviceTables, TableCache};
use crate::{Device, GpuError};

#[derive(Debug)]
pub(crate) struct Needs {
    /// `None` where blocks are their predictions and nothing else.
    pub(crate) tables: Option<Arc<DeviceTables>>,
    pub(crate) moved: DeviceMoved,
    /// Of INT8.
    pub(crate) scales: Option<CudaSlice<f32>>,
}

/// Needs that are there, or not yet.
#[derive(Debug, Default)]
pub(crate) struct Held(Mutex<Option<Arc<Needs>>>);

impl Held {
    /// Tables, what moves predictions and scales of INT8, from the device or put there now; `decodes` as for [`DeviceTables::new`].
    pub(crate) fn get(
        &self,
        device: &Arc<Device>,
        cache: &TableCache,
        tables: Option<CodingTables<'_>>,
        decodes: bool,
        moved: &Moved<'_>,
        scales: Option<&[f32]>,
    ) -> Result<Arc<Needs>, GpuError> {
        let mut there = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(needs) = &*there {
            return Ok(Arc::clone(needs));
        }
        let tables = tables.map(|tables| cache.get(device, tables, decodes));
        let needs = Arc::new(Needs {
            tables: tables.transpose()?,
            moved: DeviceMoved::new(device, moved)?,
            scales: scales.map(|scales| device.upload(scales)).transpose()?,
        });
        // They were copied in the order of the device's own stream, and other streams use them.
        device.settle()?;
        *there = Some(Arc::clone(&needs));
        Ok(needs)
    }
}
