"""VTK's EnSight reader, an independent reader that ours is compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from vtkmodules.util.numpy_support import vtk_to_numpy
from vtkmodules.vtkIOEnSight import vtkGenericEnSightReader


class VtkFrames:
    """Frames of a case file as VTK reads them.

    Args:
        case_file: The `.case` file.
    """

    def __init__(self, case_file: Path) -> None:
        self._reader = vtkGenericEnSightReader()
        self._reader.SetCaseFileName(str(case_file))
        self._reader.ReadAllVariablesOn()
        self._reader.UpdateInformation()
        sets = self._reader.GetTimeSets()
        # Variables follow the time set with the most steps: the geometry changes less often.
        counts = [sets.GetItem(i).GetNumberOfTuples() for i in range(sets.GetNumberOfItems())]
        self.times = vtk_to_numpy(sets.GetItem(int(np.argmax(counts)))).tolist()

    def read(
        self, frame: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], dict[str, NDArray[np.float32]], dict[str, NDArray[np.float32]]]:
        """Points, cells, point arrays and cell arrays of a frame."""
        self._reader.SetTimeValue(self.times[frame])
        self._reader.Update()
        grid = self._reader.GetOutput().GetBlock(0)
        points = vtk_to_numpy(grid.GetPoints().GetData()).copy()
        cells = vtk_to_numpy(grid.GetCells().GetConnectivityArray()).reshape(-1, 8).copy()
        arrays = []
        for data in (grid.GetPointData(), grid.GetCellData()):
            named = {}
            for i in range(data.GetNumberOfArrays()):
                array = data.GetArray(i)
                named[array.GetName()] = vtk_to_numpy(array).copy()
            arrays.append(named)
        return points, cells, arrays[0], arrays[1]
