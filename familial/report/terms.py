"""Definitions of the terms on the pages, shown where they stand."""

from familial.analysis import middle

TERMS = {
  'N': (
    'Parameters without embeddings and unembedding: of the whole backbone (last '
    "exit, mean over exits), or of the exit's stand-alone model (each exit)."
  ),
  'D': (
    'Training tokens. For each exit: the tokens that a dense model of its exact '
    "shape would see for the run's FLOPs."
  ),
  'G': 'Granularity: number of exits of one backbone, the last layer included.',
  'C': (
    'Training FLOPs of a run: every matrix product, full attention and every '
    "exit's head, forward and backward; no evaluation, no recomputation."
  ),
  'loss': (
    'Mean token cross-entropy in nats on held-out text, the same for all runs.'
  ),
  'last exit': (
    "The last exit's loss. The law compares at equal N and D; pairs are compared "
    'at equal FLOPs.'
  ),
  'mean over exits': (
    "The mean of all exits' losses, 1/G each. It rises with G also because "
    'shallow exits are smaller models.'
  ),
  'each exit': (
    'Every exit as a model of its own size and data at equal FLOPs.'
  ),
  'gamma': (
    'Exponent of G: the law, or its reducible part, is multiplied by G^gamma. 0 '
    'means that sharing is free.'
  ),
  'interval': (
    'A 95 % interval. By bootstrap: percentiles over refits of resampled runs, '
    'exits of one run together. By profile: the values that the refitted law does '
    "not rule out. Over pairs: Student's, from the scatter between shapes. None "
    'contains the error of the law itself.'
  ),
  'AIC': (
    'Akaike information criterion; lower is better. A difference below 2 means '
    'nothing, and rows count as independent, which the exits of a run are not.'
  ),
  'Efficiency Leverage': (
    "FLOPs that separate dense models of the exits' sizes need together to reach "
    "the exits' losses, over the family's; infinite where no dense model of that "
    'size reaches one.'
  ),
  'exponent of depth': (
    'Minus the slope of log test loss on log depth over the depths of a group.'
  ),
  'regime': (
    'What the layers do: compositional (steps and stops depend on the input), '
    'smooth (neighbouring updates are alike) or ensemble (nearly orthogonal: '
    'layers average).'
  ),
  'identified': (
    'Whether the points determine a constant, to better than a factor of e.'
  ),
  'held-out shapes': (
    'Each width at each depth is left out in turn, with all of its points and '
    'seeds, and predicted by the law fitted to the rest.'
  ),
  'composition': (
    'Steps and stops that depend on the input: the spread of steps, the tokens '
    'that stop early and the spread of stops are higher than in dense models.'
  ),
  'strength': 'Best score of a regime less the next; named from 0.5 on.',
  'agreement': 'Share of resamples of groups of tokens with the same regime.',
  'middle_turn': 'Mean angle by which a middle layer turns the state, radians.',
  **{
    name: f'{middle.DEFINITIONS[name]}.'
    for name in (
      'alignment',
      'departure',
      'drift',
      'step_spread',
      'early',
      'stop_spread',
    )
  },
  'n.s.': 'Not significant: the interval contains 0, or is unknown.',
  'twin': "A dense model of an exit's exact shape, trained with the same FLOPs.",
  'epochs': 'Passes over the training tokens; beyond 4, repeated text counts less.',
  'arm': 'Part of the study that a run belongs to.',
  'way': (
    'How a family is trained. Separate: each size alone. Chain: each size grown '
    'from the one before, and trained on. Exits: one model with an exit for each '
    'size.'
  ),
  'member': 'A model of a family that can be deployed: one size of it.',
  'size': 'Rank of a member by parameters, 1 the smallest.',
  'relative loss': (
    "exp(mean of log(loss / the other way's loss)) - 1, over pairs of one seed, "
    'budget and size; negative is better.'
  ),
  'pooled interval': (
    "Student's at 95 %. The scatter between seeds is pooled over all pairs of the "
    "study; seeds are shared by a family's sizes, so only seeds and budgets "
    'average it. None with one seed.'
  ),
  'compute for equal loss': (
    "exp(log relative loss / s), s of loss ~ C^-s by the way's own losses at the "
    "study's budgets: the multiple of the other's compute at its loss. The error "
    'of s is left out of the interval.'
  ),
  'saving by the ledger': 'FLOPs that a chain spends less than the other way.',
  'saving at its losses': (
    "What a chain spends less than the other way would need for the chain's "
    "losses: each size's compute is moved along that way's own slope, whose error "
    'is left out of the interval.'
  ),
  'KL(p ‖ q)': (
    'Mean over held-out tokens of the divergence of q from p, the distributions '
    'of the next token by two models, in nats; 0 if they are equal.'
  ),
  'Jensen-Shannon': (
    'Mean divergence of both from their average; at most log 2 = 0.693 nats.'
  ),
  'top-1': 'Share of held-out tokens that both models hold the likeliest.',
  'tokens seen': 'Training tokens of a run and of all runs that it grew from.',
  'policy': 'Rule by which a budget is divided among candidates.',
  'candidate': 'A model that can be trained; its curve is its loss by FLOPs.',
  'budget': (
    'FLOPs of all candidates together. Nothing is refunded: what a candidate '
    'that ends leaves is not spent.'
  ),
  'horizon': 'FLOPs to which a candidate is trained at most.',
  'whole grid': 'All candidates, each trained to the horizon.',
  'round': (
    'All survivors train on by one share, B / (survivors x rounds); then 1 / eta '
    'of them survive.'
  ),
  'score': (
    'What survivors are ranked by, lowest first: the lowest loss so far, or the '
    'lower of it and the predicted loss.'
  ),
  'prediction': (
    'Of the loss at the FLOPs that a candidate has if it survives to the last '
    'round, with a 90 % interval. Predictions prune; no law is fitted to them.'
  ),
  'draw': 'A random choice of the candidates, the same for all policies.',
  'gain over sh': (
    '(loss of sh - loss) / loss of sh on one draw, of the best model that each '
    'has seen; the mean over draws.'
  ),
  "share of the oracle's gain": (
    "Mean gain over the oracle's mean gain; uniform and law have rounds of their "
    'own and may exceed it.'
  ),
  'regret': (
    'Loss over the lowest loss of a single candidate trained with the whole '
    'budget, less 1.'
  ),
  'saving': '1 - FLOPs over the cost of training all candidates to their ends.',
  'frontier': (
    'Lowest loss over all curves at a compute. Its line is straight in log loss '
    'over log C, through the last factor of 30 of compute.'
  ),
  'area (AbC)': (
    "Area between the lines of a policy's and the whole grid's frontier, in ln "
    'loss over ln C.'
  ),
  'law off by': (
    "Relative error of the extrapolated loss of the policy's law, compared with "
    "the whole grid's. Line off by: of the line through its frontier."
  ),
  'extrapolated loss': (
    'Lowest loss of a law at a compute beyond the grid, at its own best size.'
  ),
  'coverage': (
    'Share of true losses within their predicted intervals, nominally 90 %.'
  ),
  'policy uniform': 'Equal shares for all candidates; none is pruned.',
  'policy sh': 'Successive Halving: those of the lowest loss so far survive.',
  'policy sh_lmc': (
    'Successive Halving by the lower of the loss so far and the one predicted '
    'for the end by a multi-output Gaussian process over the curves.'
  ),
  'policy sh_ensemble_power_law': (
    'As sh_lmc, by five small networks that predict the coefficients of a power '
    'law.'
  ),
  'policy sh_ensemble_exponential': 'Likewise, of an exponential.',
  'policy sh_ensemble_mmf': 'Likewise, of a Morgan-Mercer-Flodin curve.',
  'policy law': (
    "Trains what reduces the variance of the law's extrapolated loss most per "
    'FLOP; it prunes none and does not look for the lowest loss.'
  ),
  'policy oracle': (
    'Successive Halving by the true loss at the end, which only a replay knows.'
  ),
}
# Terms of the policies of allocations.
POLICIES = [name for name in TERMS if name.startswith('policy ')]
