"""Laws of loss, fitted to tables of runs: `laws.fit(form, laws.read(table))`."""

from familial.laws.record import load as load
from familial.laws.result import Options as Options
from familial.laws.result import Result as Result
from familial.laws.result import fit as fit
from familial.laws.table import read as read
