"""What the terms on the pages mean; shown where they stand."""

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
  'n.s.': 'Not significant: the interval contains 0, or is unknown.',
  'twin': "A dense model of an exit's exact shape, trained with the same FLOPs.",
  'epochs': 'Passes over the training tokens; beyond 4, repeated text counts less.',
  'arm': 'Part of the study that a run belongs to.',
}
