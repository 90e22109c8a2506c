"""Opens a zoo: tables as DataFrames, lazy selections, weights as matrices, state dicts, modules or torch datasets.

Opening reads the manifest; tables are read when first used; weights are read when asked for, and only those.
"""

from zoogen.dataset.normaliser import Normaliser
from zoogen.dataset.selection import Selection
from zoogen.dataset.trajectories import Pairs, Trajectories, Trajectory
from zoogen.dataset.twins import Twins
from zoogen.dataset.zoo import Zoo, open_zoo

__all__ = ["Normaliser", "Pairs", "Selection", "Trajectories", "Trajectory", "Twins", "Zoo", "open_zoo"]
