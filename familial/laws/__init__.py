"""Laws of loss, fitted to tables of runs: `laws.fit(form, laws.read(table))`."""

from familial.laws.fit_record import load as load
from familial.laws.inference import Options as Options
from familial.laws.inference import Result as Result
from familial.laws.inference import fit as fit
from familial.laws.table import read as read
