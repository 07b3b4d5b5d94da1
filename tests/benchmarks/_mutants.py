"""Textbook bugs, for `mutants`: what people get wrong who implement diffusion models from papers.

One entry is (name, text in core/<module>.py, what stands there in the mutant). Every text occurs exactly once in its
module, and every replacement changes what the module computes: none is a matter of style, rounding or cost. They were
chosen from the modules and from the literature's traps, without a look at the tests.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["MUTANTS", "Mutant"]


class Mutant(NamedTuple):
    """One bug."""

    module: str
    """of core"""
    bug: str
    """what is wrong, in words"""
    old: str
    new: str

    @property
    def name(self) -> str:
        """How it is called on the command line."""
        return f"{self.module}: {self.bug}"


TABLE: dict[str, list[tuple[str, str, str]]] = {
    "schedules": [
        (
            "sub-VP deviation is the root of the variance-preserving variance",
            "return log_alpha_t.exp(), -torch.expm1(2 * log_alpha_t)",
            "return log_alpha_t.exp(), (-torch.expm1(2 * log_alpha_t)).sqrt()",
        ),
        (
            "linear beta gives alpha_bar in place of alpha",
            "return variance_preserving(-(t**2) * (self.beta_max - self.beta_min) / 4 - t * self.beta_min / 2)",
            "return variance_preserving(-(t**2) * (self.beta_max - self.beta_min) / 2 - t * self.beta_min)",
        ),
        (
            "variance for deviation in variance-preserving schedules",
            "return log_alpha_t.exp(), (-torch.expm1(2 * log_alpha_t)).sqrt()",
            "return log_alpha_t.exp(), -torch.expm1(2 * log_alpha_t)",
        ),
        (
            "a published table's alpha_bar is taken for alpha",
            "self._angle = torch.atan2((1 - kept).sqrt(), kept.sqrt())",
            "self._angle = torch.atan2((1 - kept**2).sqrt(), kept)",
        ),
        (
            "a published table's endpoint is off by one",
            "place = t * len(self.alphas_bar)",
            "place = t * (len(self.alphas_bar) - 1)",
        ),
        (
            "log of alpha/sigma for the log-SNR",
            "return 2 * (alpha_t.log() - sigma_t.log())",
            "return alpha_t.log() - sigma_t.log()",
        ),
        (
            "g squared for g",
            "return self(t)[1] * (-self._rate(self.log_snr, t)).sqrt()",
            "return self(t)[1] ** 2 * -self._rate(self.log_snr, t)",
        ),
        (
            "the drift is the slope of alpha, not of its log",
            "return self._rate(lambda u: self(u)[0].log(), t)",
            "return self._rate(lambda u: self(u)[0], t)",
        ),
        (
            "cosine gives alpha_bar for alpha",
            "alpha_t = torch.sin(scale * (1 - t)) / top",
            "alpha_t = (torch.sin(scale * (1 - t)) / top) ** 2",
        ),
        (
            "exploding sigma grows linearly",
            "sigma_t = self.sigma_min * torch.exp(u.clamp_min(0) * math.log(self.sigma_max / self.sigma_min))",
            "sigma_t = self.sigma_min + u.clamp_min(0) * (self.sigma_max - self.sigma_min)",
        ),
        (
            "EDM's exponent is off by one",
            "(low + u * (high - low)) ** self.rho",
            "(low + u * (high - low)) ** (self.rho - 1)",
        ),
    ],
    "grids": [
        ("published indices are half a step off", "(index + 1) / T,", "(index + 0.5) / T,"),
        ("trailing truncates where it must round", "* T / steps).round() - 1", "* T / steps).floor() - 1"),
        ("quadratic grid is dense at the noise", "power(steps, 2.0, schedule)", "power(steps, 0.5, schedule)"),
        ("Karras' grid ends at the variance for the deviation", "-end / (2 * rho)", "-end / rho"),
    ],
    "kernel": [
        ("coefficients of a learned schedule are not refreshed", "if self.fixed:", "if True:"),
    ],
    "layout": [
        (
            "numbers go to rows in turn",
            "numbers = numbers.expand(self.num_graphs)[self.on(x.device)]",
            "numbers = numbers.expand(self.num_graphs)[torch.arange(len(x), device=x.device) % self.num_graphs]",
        ),
        ("numbers go to the wrong example", "[self.on(x.device)]\n", "[self.num_graphs - 1 - self.on(x.device)]\n"),
        (
            "sums over the whole batch",
            "return x.new_zeros(self.num_graphs).index_add(0, self.on(x.device), per_row(x))",
            "return per_row(x).sum().expand(self.num_graphs)",
        ),
        (
            "rows are counted for elements",
            "self.sizes.to(x.device) * math.prod(x.shape[1:])",
            "self.sizes.to(x.device)",
        ),
        (
            "the first generator draws for every example",
            "draw((size, *x.shape[1:]), one,",
            "draw((size, *x.shape[1:]), generator[0],",
        ),
        (
            "taken examples keep the sizes of the first ones",
            "sizes = self.sizes[index.to(self.index.device)]\n        rows",
            "sizes = self.sizes[: len(index)]\n        rows",
        ),
        (
            "rows of taken examples begin one example later",
            "shift = (self.sizes.cumsum(0) - self.sizes)[index]",
            "shift = self.sizes.cumsum(0)[index] - self.sizes[0]",
        ),
        (
            "examples without rows at the end are lost",
            "torch.bincount(index, minlength=self.num_graphs)",
            "torch.bincount(index)",
        ),
        ("places count through the batch", "- (self.sizes.cumsum(0) - self.sizes)[self.index]", ""),
    ],
    "structure": [
        ("structure is not bound", "kernel = own.given(**structure)", "own.given(**structure)"),
        ("structure is a condition, too", 'not in ("x_0", "structure")}', 'not in ("x_0",)}'),
    ],
    "parts": [
        (
            "conditions are never dropped",
            "super().__init__(denoiser, kernel, weights[0], times, drop)",
            "super().__init__(denoiser, kernel, weights[0], times)",
        ),
        ("shares are not applied", "scale = share * weight(part.schedule, t)", "scale = weight(part.schedule, t)"),
        ("first part's schedule weighs all", "share * weight(part.schedule, t)", "share * weight(kernel.schedule, t)"),
        (
            "every part per dimension of the whole",
            "part.dims(y).to(error).clamp_min(1)",
            "kernel.dims(x_0).to(error).clamp_min(1)",
        ),
        (
            "first reading's numbers for all",
            "each = [numbers[first:last] for first, last in pairwise(ends)]",
            "each = [numbers[: last - first] for first, last in pairwise(ends)]",
        ),
        ("the parts' states are not scaled for the network", "tuple(x for x, _ in asked)", "x_t"),
    ],
    "case": [
        (
            "the kernel keeps the structure of all examples",
            "kernel=kernel.taken(index, x_0)",
            "kernel=kernel",
        ),
        ("conditions stay those of all examples", "return value[index]", "return value[: len(index)]"),
        (
            "conditions with a row per atom are left alone",
            "return self.kernel.take(value, index) if value.ndim and len(value) == rows else value",
            "return value",
        ),
    ],
    "noise": [
        (
            "diagonal noise is drawn with the variance for the deviation",
            "return self.standard(like, generator) * self.deviation(like)",
            "return self.standard(like, generator) * self.deviation(like) ** 2",
        ),
        (
            "log-determinant of the deviations, not of the variances",
            "return self.total(2 * torch.where(deviation > 0, deviation, 1).log())",
            "return self.total(torch.where(deviation > 0, deviation, 1).log())",
        ),
        (
            "whitening by the root of the deviation",
            "torch.where(deviation > 0, x / deviation.clamp_min(torch.finfo(x.dtype).tiny), 0) ** 2",
            "torch.where(deviation > 0, x**2 / deviation.clamp_min(torch.finfo(x.dtype).tiny), 0)",
        ),
        (
            "the norm of an example sums magnitudes",
            "torch.linalg.vector_norm(x, dim",
            "torch.linalg.vector_norm(x, 1, dim",
        ),
        (
            "a state that is met twice counts once",
            "(number, x) if known is None else (known[0] + number, x)",
            "(number, x)",
        ),
    ],
    "clouds": [
        (
            "projection moves the rows that do not count",
            "return centred if self.rows is None else centred * self.rows.to(x)",
            "return centred",
        ),
        (
            "taken clouds keep the graph of all examples",
            "view.layout = self.layout.taken(index)",
            "view.layout = self.layout",
        ),
        (
            "centred clouds keep all degrees of freedom",
            "return (self.counts(like.to(countable(like))) - 1).clamp_min(0) * like.shape[1]",
            "return self.counts(like.to(countable(like))) * like.shape[1]",
        ),
        (
            "centred noise is not centred",
            "return self.project(self.standard(like, generator))",
            "return self.standard(like, generator)",
        ),
    ],
    "gaussian": [
        (
            "posterior weighs x_t by the squared ratio",
            "torch.exp(fall / 2) * sigma_s / sigma_t",
            "torch.exp(fall) * sigma_s / sigma_t",
        ),
        ("posterior variance for deviation", "kept.sqrt() * sigma_s,", "kept * sigma_s**2,"),
        ("fixed large for fixed small", "kept.sqrt() * sigma_s,", "kept.sqrt() * sigma_t,"),
        ("transition by the cumulative alpha", "alpha_t / alpha_s,", "alpha_t,"),
        (
            "transition noise without the step's share",
            "kept.sqrt() * sigma_t,",
            "sigma_t,",
        ),
        (
            "one spread widens the deviation by the ratio of variances",
            "law.scale * ratio**belief.spread",
            "law.scale * ratio ** (2 * belief.spread)",
        ),
        (
            "learned range widens the deviation by the ratio of variances",
            "widened = torch.exp(belief.spread * ",
            "widened = torch.exp(2 * belief.spread * ",
        ),
        (
            "continuous bound without the clock's Jacobian",
            "growth = torch.sigmoid(log_snr) * self.schedule.log_snr_rate(t)",
            "growth = self.schedule.log_snr_rate(t)",
        ),
        ("decoder's width without the division by alpha", "return (sigma_t / alpha_t,)", "return (sigma_t,)"),
        (
            "unit prior for exploding schedules",
            "Normal(torch.zeros_like(like), self._marginal(end)[1], self.noise)",
            "Normal(torch.zeros_like(like), 1.0, self.noise)",
        ),
    ],
    "distributions": [
        ("density with the deviation for the variance", "(2 * math.pi * scale**2)", "(2 * math.pi * scale)"),
        ("KL with the scales exchanged", "ratio = (mine / theirs) ** 2", "ratio = (theirs / mine) ** 2"),
        (
            "KL of elements without the half of the means' distance",
            "terms = (ratio - 1 - ratio.log() + ((self.mean - other.mean) / theirs) ** 2) / 2",
            "terms = (ratio - 1 - ratio.log()) / 2 + ((self.mean - other.mean) / theirs) ** 2",
        ),
        (
            "elements are drawn with the variance for the deviation",
            "return self.mean + self.deviation * unit",
            "return self.mean + self.deviation**2 * unit",
        ),
        ("KL of tokens the other way round", "p = self.log_probs.exp()", "p = other.log_probs.exp()"),
    ],
    "categorical": [
        ("ragged times are per example where rows are wanted", "return self.layout.rowwise(t)", "return t"),
        (
            "taken chains keep the graph of all examples",
            "view.layout = self.layout.taken(index)",
            "view.layout = self.layout",
        ),
        (
            "posterior's law sums over rows",
            "return Discrete(normalised(forward + backward), self.layout)",
            "return Discrete(normalised(forward + backward))",
        ),
        (
            "dims are positions of the batch",
            "self.layout.numel(x).to(",
            "self.layout.numel(x).sum().expand(self.examples(x)).to(",
        ),
        (
            "belief is not divided by q(x_t | x_0)",
            "torch.where(possible > -math.inf, belief - possible, -math.inf)",
            "torch.where(possible > -math.inf, belief, -math.inf)",
        ),
        (
            "posterior takes the cumulative transition for the step's",
            "self.columns(x_t, self.at(s), self.at(t), belief.dtype)",
            "self.columns(x_t, 0.0, self.at(t), belief.dtype)",
        ),
        ("a row of the transition for its column", "self.log_pi[x].unsqueeze(-1)", "self.log_pi"),
        (
            "tokens are concluded by the mode",
            "return Discrete(belief, self.layout).sample(generator)",
            "return belief.argmax(-1)",
        ),
        (
            "score entropy the other way round",
            "self.layout.total(divergence(log_rate + log_r, log_rate + log_s))",
            "self.layout.total(divergence(log_rate + log_s, log_rate + log_r))",
        ),
        (
            "pace without the slope of alpha",
            "alpha_t * self.schedule.drift(t) / (last - first)",
            "torch.ones_like(t) / (first - last)",
        ),
    ],
    "score_entropy": [
        (
            "the share of diffusion is not counted",
            "(stretch / (1 - self.low)).to(rate)",
            "stretch.to(rate)",
        ),
        ("structure forgotten", "kernel, x_0 = own.kernel, own.x_0", "kernel, x_0 = self.kernel, own.x_0"),
        ("time is cut off", "torch.where((u <= self.low).to(rate.device), reconstruction, diffusion)", "diffusion"),
        ("weight of alpha for its complement", "(1 - alpha_t).clamp_min(2.0**-53)", "alpha_t.clamp_min(2.0**-53)"),
        ("share of the reconstruction not counted", "log_prob(x_0) / self.low", "log_prob(x_0)"),
    ],
    "product": [
        (
            "densities of the parts are summed, not averaged",
            "total(densities) / len(densities)",
            "total(densities)",
        ),
        (
            "every part takes the first one's structure",
            "part.given(**structure.get(name, {}))",
            "part.given(**structure.get(names[0], {}))",
        ),
        (
            "taken products keep the structure of all examples",
            "nn.ModuleList(part.taken(index, y) for part, y in zip(self._each(), like, strict=True))",
            "nn.ModuleList(self._each())",
        ),
        (
            "only the first part's loss",
            "return total(part.error(y, b, t) for part, y, b in zipped)",
            "return next(part.error(y, b, t) for part, y, b in zipped)",
        ),
        ("learned variances of the parts are lost", "part.reverse(y, b, s, t)", "part.posterior(y, b, s, t)"),
    ],
    "denoisers": [
        ("sign of v", "return alpha_t / power, -sigma_t / power,", "return alpha_t / power, sigma_t / power,"),
        (
            "eps scaled by the variance",
            "return 1 / alpha_t, -sigma_t / alpha_t,",
            "return 1 / alpha_t, -(sigma_t**2) / alpha_t,",
        ),
        (
            "score scaled by the deviation",
            "return 1 / alpha_t, sigma_t**2 / alpha_t,",
            "return 1 / alpha_t, sigma_t / alpha_t,",
        ),
        ("sign of the velocity", "-sigma_t / (alpha_t + sigma_t),", "sigma_t / (alpha_t + sigma_t),"),
        ("EDM's c_out without the root", "sigma_t * sigma_data / power.sqrt()", "sigma_t * sigma_data / power"),
        ("EDM's c_skip without the square", "alpha_t * sigma_data**2 / power", "alpha_t * sigma_data / power"),
        ("network's index off by one", "(T * t - 1).round(decimals=6)", "(T * t).round(decimals=6)"),
        ("change of schedule does not rescale x_t", "return c_skip * scale, c_out,", "return c_skip, c_out,"),
        ("learned range inverted", "spread = (fraction + 1) / 2", "spread = (1 - fraction) / 2"),
        ("learned range's fraction unscaled", "spread = (fraction + 1) / 2", "spread = fraction"),
        (
            "mean and range exchanged",
            "output, fraction = output.chunk(2, dim=1)",
            "fraction, output = output.chunk(2, dim=1)",
        ),
        ("output is not projected", "output = kernel.project(output)", "output = +output"),
        (
            "context without the evidence",
            "return (output + evidence.to(output)).log_softmax(-1)",
            "return output.log_softmax(-1)",
        ),
    ],
    "objectives": [
        (
            "given pairs are ignored",
            "kernel.pair(x_0, generator) if x_1 is None else x_1",
            "kernel.pair(x_0, generator)",
        ),
        ("root of the SNR", "return schedule.log_snr(t).exp()", "return (schedule.log_snr(t) / 2).exp()"),
        ("min-SNR takes the maximum", ".clamp(max=gamma)", ".clamp(min=gamma)"),
        ("P2 without its SNR", "simple(schedule, t) / (k + ", "1 / (k + "),
        ("EDM's weight without the square", "+ 1 / sigma_data**2", "+ 1 / sigma_data"),
        (
            "likelihood weight without its half",
            "return -simple(schedule, t) * schedule.log_snr_rate(t) / 2",
            "return -simple(schedule, t) * schedule.log_snr_rate(t)",
        ),
        (
            "v's weight for variance-preserving schedules only",
            "return (alpha_t**2 + sigma_t**2) ** 2 / sigma_t**2",
            "return (alpha_t**2 + sigma_t**2) / sigma_t**2",
        ),
        (
            "velocity's weight without the square",
            "return ((alpha_t + sigma_t) / sigma_t) ** 2",
            "return (alpha_t + sigma_t) / sigma_t",
        ),
        ("conditions are dropped with the other probability", ".device) < probability", ".device) > probability"),
        ("EDM's times by the variance", "schedule.inverse(-2 * log_sigma)", "schedule.inverse(-log_sigma)"),
    ],
    "randomness": [
        (
            "seed and step are added",
            "seeded(seed, step, position) for",
            "seeded(seed + step, position) for",
        ),
        (
            "double precision is drawn in single",
            "return torch.float64 if dtype == torch.float64 else torch.float32",
            "return torch.float32",
        ),
        ("one time for the whole batch", "+ positions.double() / size) % 1", "+ positions.double()) % 1"),
    ],
    "bounds": [
        (
            "bound without its prior",
            "return self.prior + self.gaps.sum(0) + self.reconstruction",
            "return self.gaps.sum(0) + self.reconstruction",
        ),
        (
            "bits per dimension without the Jacobian",
            "return (nats / dims.to(nats) - log_det) / math.log(2)",
            "return nats / dims.to(nats) / math.log(2)",
        ),
        (
            "bits per dimension with the Jacobian's sign",
            "return (nats / dims.to(nats) - log_det) / math.log(2)",
            "return (nats / dims.to(nats) + log_det) / math.log(2)",
        ),
        (
            "the gap's state is drawn at the earlier time",
            "x_t = kernel.marginal(x_0, t).sample(generator)\n        gaps",
            "x_t = kernel.marginal(x_0, s).sample(generator)\n        gaps",
        ),
    ],
    "estimates": [
        (
            "the same gap for every term",
            "place = (((start + k) / terms) * inner)",
            "place = (start * inner)",
        ),
        (
            "paths are drawn from the model",
            "x = forward.sample(generator)",
            "x = reverse.sample(generator)",
        ),
        ("one gap counts once", "s, t) * (inner / terms))", "s, t) * (1 / terms))"),
        ("continuous bound without the pace", "stretch.to(rate) * rate / terms", "rate / terms"),
        (
            "path's weight without q(x_1 | x_0)",
            "weight = kernel.prior(x_0).log_prob(x) - law.log_prob(x)",
            "weight = kernel.prior(x_0).log_prob(x)",
        ),
        (
            "mean of the logs",
            "return weights.logsumexp(0) - math.log(len(weights))",
            "return weights.mean(0)",
        ),
    ],
    "importance": [
        (
            "log-snrs are drawn independently though spread",
            "low_discrepancy(0.0, 1.0) if spread else uniform(0.0, 1.0)",
            "uniform(0.0, 1.0)",
        ),
        (
            "weight times the density",
            "weight(schedule, t) / self.density(schedule, t)",
            "weight(schedule, t) * self.density(schedule, t)",
        ),
        (
            "the lower end of the log-SNR for its range",
            "schedule.inverse(most + (least - most) * u.to(most))",
            "schedule.inverse(most + least * u.to(most))",
        ),
    ],
    "hybrid": [
        (
            "the first time of the grid is never drawn",
            "positive = times[:-1]",
            "positive = times[:-2]",
        ),
        (
            "structure forgotten",
            "self.denoising.look(opened(self.kernel, batch), generator)",
            "self.denoising.look(opened(self.kernel, batch)._replace(kernel=self.kernel), generator)",
        ),
        (
            "the bound teaches the mean",
            "return Belief(belief.mean.detach(), belief.spread)",
            "return Belief(belief.mean, belief.spread)",
        ),
        ("number of terms off by one", "return (len(rising) - 1) * torch.where(", "return len(rising) * torch.where("),
        ("wrong previous time", "(torch.searchsorted(rising, t) - 1)", "(torch.searchsorted(rising, t) - 2)"),
    ],
    "vdm": [
        (
            "inner schedule learns from the loss, not from its square",
            "s, slope = (steered(number, gain) for number in shape_and_slope(schedule, t))",
            "s, slope = shape_and_slope(schedule, t)",
        ),
        (
            "structure forgotten",
            "whole, x_0, condition = opened(self.kernel, batch)",
            "whole, x_0, condition = opened(self.kernel, batch)._replace(kernel=self.kernel)",
        ),
        ("inner schedule learns from half the square", "gain.copy_(2 * diffusion", "gain.copy_(diffusion"),
        ("diffusion loss without its half", "slope * torch.exp(-gamma) / 2", "slope * torch.exp(-gamma)"),
        ("prior at the wrong end", "torch.exp(-gamma_0 - span).to(squares)", "torch.exp(-gamma_0).to(squares)"),
        ("reconstruction without rescaling", "(1 / alpha_t, x_t))", "(1.0, x_t))"),
        ("Fourier features without pi", "x * (2.0**n * math.pi)", "x * (2.0**n)"),
    ],
    "dequantisation": [
        (
            "density of z for that of the logit",
            "normal = -(z**2 + math.log(2 * math.pi)) / 2 - log_deviation",
            "normal = -(z**2 + math.log(2 * math.pi)) / 2",
        ),
        ("bins of 2/L", "width = 2 / (self.levels - 1)", "width = 2 / self.levels"),
        (
            "Jacobian of the scaling dropped",
            "log_density - v[0].numel() * math.log(width)",
            "log_density",
        ),
        ("Jacobian of the sigmoid inverted", "(normal - slope)", "(normal + slope)"),
    ],
    "ancestral": [
        (
            "previous time by equal steps",
            "kernel.reverse(x, belief, s, t)",
            "kernel.reverse(x, belief, t - (grid[0] - grid[1]), t)",
        ),
        (
            "missing final denoise",
            "yield Step(grid[-1], kernel.conclude(belief, generator), belief)",
            "yield Step(grid[-1], x, belief)",
        ),
    ],
    "ddim": [
        ("variance for deviation", "of_noise = sigma_s * share.sqrt()", "of_noise = sigma_s * share"),
        ("direction without the noise's share", "of_eps = sigma_s * (1 - share).sqrt()", "of_eps = sigma_s"),
        ("eta for its square", "share = eta**2 * (", "share = eta * ("),
        (
            "eps not derived from the belief at t",
            "alpha_s - of_eps * alpha_t / sigma_t",
            "alpha_s - of_eps * alpha_s / sigma_t",
        ),
    ],
    "sampling": [
        (
            "a step carries the time it began at",
            "yield Step(s, x, belief)",
            "yield Step(t, x, belief)",
        ),
        (
            "final alpha is that of the last noisy time",
            "alpha, sigma = path.schedule(times)",
            "alpha, sigma = path.schedule(times.clamp_min(float(times[-2].min())))",
        ),
        ("a state that is sent is not taken up", "x = x if sent is None else sent", "x = x"),
        ("noise in the last step", "[*columns(of_noise[:-1])[0], None]", "columns(of_noise)[0]"),
    ],
    "ode": [
        ("Heun without averaging", "half = line(k_s, step / 2,", "half = line(k_s, step,"),
        ("sign of the straight velocity", "sigma / (alpha + sigma), -1.0", "sigma / (alpha + sigma), 1.0"),
        ("eps without alpha", "k_s * step * (da - alpha / sigma)", "k_s * step * (da - 1 / sigma)"),
    ],
    "spaces": [
        (
            "DDIM's step for exploding schedules only",
            "return sigma_s / sigma_t, alpha_s - alpha_t * sigma_s / sigma_t",
            "return sigma_s / sigma_t, 1 - sigma_s / sigma_t",
        ),
        ("angle runs twice as fast", "-0.5 / torch.cosh(half)", "-1 / torch.cosh(half)"),
        ("eps without the division by sigma", "(1 / sigma, -alpha / sigma)", "(1 / sigma, -alpha)"),
        ("log-SNR for its half", "return schedule.inverse(2 * half)", "return schedule.inverse(half)"),
    ],
    "multistep": [
        (
            "Lagrange polynomials with the wrong sign",
            "/ (own - other).unsqueeze(-1)",
            "/ (other - own).unsqueeze(-1)",
        ),
        (
            "the constant's step counted twice",
            "k_s * (weight - measure.sum(-1) if lag == 0 else weight)",
            "k_s * weight",
        ),
        (
            "order falls one interval too early",
            "torch.minimum(index + 1, n - index)",
            "torch.minimum(index + 1, n - index - 1)",
        ),
        (
            "previous predictions one further back",
            "known(of_beliefs, i)",
            "[(max(2 * j - i, 0), weight) for j, weight in known(of_beliefs, i)]",
        ),
    ],
    "tableau": [
        (
            "a sent state does not enter the history",
            "x = x if sent is None else sent\n        if i + 1 in state_end:\n            states[i + 1] = x",
            "if i + 1 in state_end:\n                states[i + 1] = x\n            x = x if sent is None else sent\n"
            "        elif i + 1 in state_end:\n            states[i + 1] = x",
        ),
        (
            "tables keep their own state where one is sent",
            "x = x if sent is None else sent",
            "x = x",
        ),
        (
            "history not reset between runs",
            "beliefs[calls] = Belief(belief.mean) if calls in repeated else belief",
            "beliefs[calls] = vars(follow).setdefault((calls, x.shape), belief) if calls in repeated else belief",
        ),
        (
            "noise is not from the generator",
            "kernel.noise.perturbed(row.noise, generator, *terms)",
            "kernel.noise.perturbed(row.noise, None, *terms)",
        ),
    ],
    "dpm_solver": [
        ("2M extrapolates backwards", "[change * lean, -change * lean]", "[-change * lean, change * lean]"),
        ("2M's ratio of steps inverted", "h[1:] / (2 * h[:-1])", "h[:-1] / (2 * h[1:])"),
        (
            "2S's middle at half of the middle's log-SNR",
            "schedule.inverse(torch.where(fit, half[:-1] + half[1:], 0))",
            "schedule.inverse(torch.where(fit, (half[:-1] + half[1:]) / 2, 0))",
        ),
        (
            "2S's middle in time",
            "schedule.inverse(torch.where(fit, half[:-1] + half[1:], 0))",
            "between",
        ),
        (
            "3M's second difference over one step",
            "(before * slope_moment + curvature * h * square_moment) / span",
            "(before * slope_moment + curvature * h * square_moment) / earlier",
        ),
    ],
    "dpm_solver_sde": [
        (
            "variance for deviation",
            "(-torch.expm1(2 * eta * decay.log())).sqrt()",
            "-torch.expm1(2 * eta * decay.log())",
        ),
        ("eta does not reach the state", "sigma[:-1] * decay**eta", "sigma[:-1] * decay"),
        ("third moment without its 2", "second = 1 - 2 * first / finite", "second = 1 - first / finite"),
    ],
    "pndm": [
        ("Adams-Bashforth's numbers", "-59 / 24, 37 / 24", "-57 / 24, 35 / 24"),
        (
            "Runge-Kutta's weights",
            "[(1 / 6, a), (1 / 3, b), (1 / 3, c), (1 / 6, d)]",
            "[(1 / 4, a), (1 / 4, b), (1 / 4, c), (1 / 4, d)]",
        ),
        (
            "transfer for exploding schedules only",
            "sigma_s - sigma_t * alpha_s / alpha_t, 0)",
            "sigma_s - sigma_t, 0)",
        ),
    ],
    "unipc": [
        ("lone coefficient without its half", "alpha[1:] * scale(h) / 2, 0)", "alpha[1:] * scale(h), 0)"),
        (
            "corrector starts from the predicted state",
            "rows.append(Row(grid[i + 1], [(2 * i, a)]",
            "rows.append(Row(grid[i + 1], [(2 * i + 1, a)]",
        ),
        ("sign of h in B(h)", "return -torch.expm1(-h)", "return torch.expm1(h)"),
    ],
    "adaptive": [
        (
            "a refused step leaves its slope behind",
            "kernel.blend(keep, new_slope, slope)",
            "new_slope",
        ),
        (
            "a sent state keeps the old slope and step",
            ", sent)), None, None",
            ", sent)), step, slope",
        ),
        ("a misprint in the tableau", "-212 / 729)", "-212 / 792)"),
        ("sign of an error weight", "-71 / 16695", "71 / 16695"),
        (
            "one norm for the batch",
            "return new, slopes[-1], wrong / allowed",
            "return new, slopes[-1], (wrong / allowed).amax().expand_as(wrong)",
        ),
        (
            "a refused step is kept",
            "accepted = (error <= 1) | arrived",
            "accepted = (error <= math.inf) | arrived",
        ),
    ],
    "inversion": [
        (
            "the first belief is asked about unscaled data",
            "Row(None, [(0, weight)], [], None)",
            "Row(None, [(0, 1.0)], [], None)",
        ),
        (
            "encoding begins without noise",
            "Row(first, [(0, 2 * weight)], [(0, -weight)], first)",
            "Row(first, [(0, weight)], [], first)",
        ),
        (
            "latents are mixed along a line",
            "(part * torch.sinc(part * angle / torch.pi) / whole for part in (1 - share, share))",
            "(part + 0 * angle for part in (1 - share, share))",
        ),
        ("half the angle", "return 2 * torch.atan2(", "return torch.atan2("),
    ],
    "sde": [
        (
            "halved score factor forgotten",
            "pull = (1 + eta**2) / 2 * diffusion**2",
            "pull = (1 + eta**2) * diffusion**2",
        ),
        ("Brownian increments grow with the step", "eta * diffusion * step.sqrt()", "eta * diffusion * step"),
        ("drift not reversed", "1 - drift * step - pull", "1 + drift * step - pull"),
        ("forward variance of one factor", "((1 - ratio) * (1 + ratio))", "(1 - ratio)"),
        ("reversed chain without its drift", "2 - ratio - pull", "1 - pull"),
    ],
    "langevin": [
        (
            "corrections after the first are thrown away",
            "steps.send(correct(step.x, at, share))",
            "(correct(step.x, at, share), next(steps))[1]",
        ),
        (
            "the noise added is not the one that sized the step",
            "(of_noise, z))",
            "(of_noise, kernel.noise.draw(x, generator)))",
        ),
        ("noise without the 2", "math.sqrt(2 * step) * at.sigma", "math.sqrt(step) * at.sigma"),
        ("corrector's step without its 2", "(2 * near(share, x)) ** 0.5", "near(share, x) ** 0.5"),
        ("paper's step for epsilon", "at, step / 2, generator)", "at, step, generator)"),
        (
            "corrector's share is the drift, not its square",
            "columns((alpha[:-1] / alpha[1:]) ** 2)",
            "columns(alpha[:-1] / alpha[1:])",
        ),
        (
            "norms averaged over the batch",
            "length = kernel.noise.norm(towards)",
            "length = kernel.noise.norm(towards).mean().expand(kernel.examples(x))",
        ),
        (
            "missing final denoise",
            "yield Step(grid[-1], belief.mean, belief)",
            "yield Step(grid[-1], x, belief)",
        ),
    ],
    "edm": [
        (
            "x keeps its scale when its noise is raised",
            "scale = alpha_hat / alpha[:-1]",
            "scale = torch.ones_like(alpha_hat)",
        ),
        ("churn not spread over the steps", "min(churn / (len(times) - 1), ", "min(churn, "),
        ("churn ignored", "gamma = within * min(", "gamma = 0 * within * min("),
        (
            "deviations subtracted for variances",
            "((u_hat - u[:-1]) * (u_hat + u[:-1]))",
            "((u_hat - u[:-1]) ** 2)",
        ),
        ("step from the time before churn", "u[1:] - u_hat", "u[1:] - u[:-1]"),
    ],
    "analytic": [
        (
            "the belief's variance at the time that is reached",
            "table.at(log_snr[:-2], most)",
            "table.at(log_snr[1:-1], most)",
        ),
        (
            "pooled tables keep the dimensions of the first",
            "squares, self.dims + other.dims)",
            "squares, self.dims)",
        ),
        ("weight of x_0 twice", "open_ = kept * (", "open_ = kept**2 * ("),
        ("weight of x_0 not squared", "of_mean**2 * table.at(", "of_mean * table.at("),
        ("eps with the sign of the mean", "belief.times(-alpha_t / sigma_t)", "belief.times(alpha_t / sigma_t)"),
        (
            "no asymptote beyond the table",
            "logs = logs - (wanted - known[-1]).clamp_min(0)",
            "logs = logs - 0 * (wanted - known[-1]).clamp_min(0)",
        ),
    ],
    "likelihood": [
        (
            "Hutchinson's noise redrawn at every call",
            "return probes(kernel.noise, x_0, generator)",
            'return type("Redrawn", (), {"__iter__": lambda _: iter(probes(kernel.noise, x_0, generator))})()',
        ),
        (
            "change of scale forgotten",
            "gained + field.dof * number(stretch, gained), prior",
            "gained, prior",
        ),
        ("trace without its scale", "(self.dof - number(k, trace) * trace)", "(self.dof - trace)"),
        (
            "Runge-Kutta's weights",
            "(1 / 6, 1 / 3, 1 / 3, 1 / 6))",
            "(1 / 8, 3 / 8, 3 / 8, 1 / 8))",
        ),
        (
            "sign of the divergence",
            "gained = gained + number(du, gained) * mean_rate",
            "gained = gained - number(du, gained) * mean_rate",
        ),
    ],
    "prior": [
        (
            "only the last batch counts",
            'found.append(kernel.marginal(x_0, 1.0).kl(kernel.prior(x_0)).detach().to("cpu", torch.float64))',
            'found = [kernel.marginal(x_0, 1.0).kl(kernel.prior(x_0)).detach().to("cpu", torch.float64)]',
        ),
        ("alpha for alpha_bar in the table", "table = (kept * alpha[0]) ** 2", "table = kept * alpha[0]"),
        (
            "sigma keeps its value",
            "return moved, (sigma**2 + lost * (alpha + moved)).sqrt()",
            "return moved, sigma",
        ),
    ],
    "truncation": [
        (
            "cholesky factor on the wrong side",
            "z @ self.factor.T",
            "z @ self.factor",
        ),
        (
            "deviation of the noise for its square",
            "(self.sigma_t * deviation) ** 2",
            "self.sigma_t**2 * deviation",
        ),
        ("alpha for its square", "alpha_t**2 * inner", "alpha_t * inner"),
        ("variance for deviation", "math.sqrt(alpha_t**2 * energy + sigma_t**2)", "alpha_t**2 * energy + sigma_t**2"),
        ("log-determinant of the factor", "2 * self.factor.diagonal()", "self.factor.diagonal()"),
        (
            "KL the other way round",
            "return law.log_prob(x_t) - self.log_prob(x_t)",
            "return self.log_prob(x_t) - law.log_prob(x_t)",
        ),
    ],
    "distillation": [
        (
            "the student's steps begin at every time of the teacher's grid",
            "i = 2 * randint(len(times) // 2, (count,), generator)",
            "i = randint(len(times) - 2, (count,), generator)",
        ),
        (
            "the teacher keeps its dropout",
            "copy.deepcopy(teacher, kept).eval()",
            "copy.deepcopy(teacher, kept)",
        ),
        (
            "structure forgotten",
            "kernel, x_0, condition = opened(self.kernel, batch)",
            "kernel, x_0, condition = opened(self.kernel, batch)._replace(kernel=self.kernel)",
        ),
        (
            "log-SNR for its half in the target",
            "whole, second = torch.expm1((top - last) / 2), torch.expm1((inner - last) / 2)",
            "whole, second = torch.expm1(top - last), torch.expm1(inner - last)",
        ),
        (
            "teacher's second step at the first time",
            "self.teacher(x_s, middle, kernel, **condition)",
            "self.teacher(x_s, t, kernel, **condition)",
        ),
        (
            "truncated from above",
            "schedule.log_snr(t).exp().clamp_min(1)",
            "schedule.log_snr(t).exp().clamp_max(1)",
        ),
    ],
    "consistency": [
        (
            "gradient flows into the target",
            "with torch.no_grad():",
            "with torch.enable_grad():",
        ),
        (
            "evaluation counts as training",
            "self.calls += self.training",
            "self.calls += 1",
        ),
        (
            "structure forgotten",
            "kernel, x_0, condition = opened(self.kernel, batch)",
            "kernel, x_0, condition = opened(self.kernel, batch)._replace(kernel=self.kernel)",
        ),
        (
            "boundary condition at 0, not at t_min",
            "above, data = sigma_t - sigma_min * alpha_t, sigma_data * alpha_t",
            "above, data = sigma_t, sigma_data * alpha_t",
        ),
        (
            "neighbours with different noise",
            "x_s = kernel.interpolate(x_0, x_1, s, generator)",
            "x_s = kernel.interpolate(x_0, kernel.pair(x_0, generator), s, generator)",
        ),
        (
            "weight without alpha",
            "return 1 / (sigma_t / alpha_t - sigma_s / alpha_s)",
            "return 1 / (sigma_t - sigma_s)",
        ),
        ("pseudo-Huber with c for its square", "(error + c**2).sqrt()", "(error + c).sqrt()"),
        (
            "fresh noise forgets that of t_min",
            "scale = sigma[1:-1] * (-torch.expm1(fall[1:])).sqrt().detach()",
            "scale = sigma[1:-1]",
        ),
        ("curriculum does not double", "first * 2 ** min(step // length, 64)", "first * (1 + step // length)"),
    ],
    "rectified": [
        (
            "straightness in x for x/(alpha + sigma)",
            "return path.combine((1 / k, x)), u",
            "return path.combine((1.0, x)), u",
        ),
        ("squares times the step", "/ (u - u_next).to(y)", "* (u - u_next).to(y)"),
        ("start of unit variance", "kernel.combine((float(sigma_1), x_1))", "kernel.combine((1.0, x_1))"),
    ],
    "interpolants": [
        (
            "eta for its square",
            "fresh = eta**2 * (gamma_s",
            "fresh = eta * (gamma_s",
        ),
        (
            "belief about x_1 at the time that is reached",
            "other(x, t).times(c)",
            "other(x, s).times(c)",
        ),
        ("gamma without its 2", "scale * (2 * t * (1 - t))", "scale * (t * (1 - t))"),
        ("fresh variance with one ratio", "(gamma_s**2 - (kept * gamma_t) ** 2)", "(gamma_s**2 - kept * gamma_t**2)"),
        ("mirrored denoiser not mirrored", "lambda x, t: denoise(x, 1 - t)", "lambda x, t: denoise(x, t)"),
    ],
    "cold": [
        (
            "x_1 by the next time's alpha",
            "-alpha[:-1] / sigma[:-1]",
            "-alpha[1:] / sigma[:-1]",
        ),
        (
            "the naive algorithm 1",
            "x = kernel.combine((1.0, x), (-1.0, before), (1.0, after))",
            "x = after",
        ),
    ],
    "guidance": [
        (
            "null branch of graphs keeps the condition",
            "**{**condition, **without})",
            "**{**without, **condition})",
        ),
        (
            "the paper's w for 1 + w",
            "return torch.lerp(null, conditional, self.weight)",
            "return torch.lerp(null, conditional, 1 + self.weight)",
        ),
        ("branches exchanged", "conditional, null = output.chunk(2)", "null, conditional = output.chunk(2)"),
        (
            "learned variance of the null branch",
            "torch.cat([mean, conditional[:, self.channels :]], dim=1)",
            "torch.cat([mean, null[:, self.channels :]], dim=1)",
        ),
    ],
    "inpainting": [
        (
            "systematic points do not turn over all slots",
            "turn = particles * rand(",
            "turn = rand(",
        ),
        (
            "effective number of weights that are not normalised",
            "(2 * total.logsumexp(1) - (2 * total).logsumexp(1)).exp()",
            "(total.logsumexp(1) - (2 * total).logsumexp(1)).exp()",
        ),
        ("known part at the noise of the step's start", "kernel.marginal(known, s)", "kernel.marginal(known, t)"),
        (
            "weight of the particles inverted",
            "(model.log_prob(x, mask) - bridge.log_prob(x, mask))",
            "(bridge.log_prob(x, mask) - model.log_prob(x, mask))",
        ),
        ("selected particles keep their weight", "-twist.gather(1, place)", "0 * twist.gather(1, place)"),
    ],
    "editing": [
        (
            "the sampler draws from the global stream",
            "sampler(denoise, kernel, x, rest, generator=generator)",
            "sampler(denoise, kernel, x, rest)",
        ),
        (
            "strength from the wrong end",
            "round((1 - strength) * (len(times) - 1))",
            "round(strength * (len(times) - 1))",
        ),
    ],
    "borders": [
        (
            "directions leave the support",
            "z = path.project(z)",
            "z = path.combine((1.0, z))",
        ),
        (
            "neighbours flow from time 1 whatever the start",
            "trajectories(batch.denoise, path, x, start=batch.start, steps=steps)",
            "trajectories(batch.denoise, path, x, steps=steps)",
        ),
        ("the width is forgotten", "torch.sqrt(far / near) / width", "torch.sqrt(far / near)"),
        ("the square of the sensitivity", "torch.sqrt(far / near) / width", "far / near / width**2"),
        ("a direction counts by its dimensions, not its length", "dots(path, z, z)", "path.dims(batch.x)"),
        ("the calmest starts first", "descending=True", "descending=False"),
    ],
    "ema": [
        (
            "the average keeps its dropout",
            "copy.deepcopy(module).eval()",
            "copy.deepcopy(module)",
        ),
        ("decay for its complement", "1.0 - self.decay_at(updates))", "self.decay_at(updates))"),
        ("no warm-up", "return min(self.decay, (1 + updates) / (10 + updates))", "return self.decay"),
    ],
    "fitting": [
        (
            "a gap moves the earlier times",
            "rows[: self.n - 1].flip(0).cumsum(0).flip(0)",
            "rows[: self.n - 1].cumsum(0)",
        ),
        (
            "three squared medians for their ninefold",
            "return 9 * errors.median()",
            "return 3 * errors.median()",
        ),
        (
            "fine solver's third stage repeats the second",
            "(0.0, h / 2), (0.0, 0.0, h)",
            "(h / 2, 0.0), (0.0, 0.0, h)",
        ),
    ],
    "calibration": [
        (
            "every table is judged by its own c",
            "all_errors(validation, table) / scale)",
            "all_errors(validation, table) / scale_of(all_errors(validation, table)))",
        ),
        (
            "the last fit is taken though an earlier table is better",
            "table = min(table, fit.table(), key=loss)",
            "table = fit.table()",
        ),
    ],
    "candidates": [
        (
            "order falls towards the end of classical tables",
            "taper=False",
            "taper=True",
        ),
    ],
    "any_order": [
        (
            "time of the revealed share for that of the hidden one",
            "1 - many.squeeze(1).cpu() / data.shape[1])",
            "many.squeeze(1).cpu() / data.shape[1])",
        ),
        (
            "an order for its inverse",
            "order.cpu().expand(flat.shape).argsort(1)",
            "order.cpu().expand(flat.shape)",
        ),
        (
            "counts are read from the last to the first",
            "gone = numbers.cumsum(0)",
            "gone = numbers.flip(0).cumsum(0)",
        ),
    ],
    "unmasking": [
        (
            "tokens are hit as if all began at t = 1",
            "noise = (1 - kernel.schedule(start)[0].detach()) * rand(",
            "noise = rand(",
        ),
        (
            "temperature by the time at the step's start",
            "torch.as_tensor(s).reshape(-1, 1)",
            "torch.as_tensor(t).reshape(-1, 1)",
        ),
        (
            "margin of the logs for that of the probabilities",
            "log_probs.topk(2, -1).values.exp()",
            "log_probs.topk(2, -1).values",
        ),
    ],
    "tau_leaping": [
        (
            "one number decides whether and where to",
            "jump, u = (kernel.layout.random(rand, x, generator, torch.float64) for _ in range(2))",
            "jump = u = kernel.layout.random(rand, x, generator, torch.float64)",
        ),
        (
            "probability that the clock rings for the step's rate",
            "moved = jump < length * log_rates.logsumexp(-1).exp()",
            "moved = jump < -torch.expm1(-length * log_rates.logsumexp(-1).exp())",
        ),
    ],
    "sharpening": [
        (
            "the symbol that passes p is left out",
            "before = probabilities.cumsum(-1) - probabilities",
            "before = probabilities.cumsum(-1)",
        ),
        (
            "changes are made in reverse order",
            "for change in changes:",
            "for change in reversed(changes):",
        ),
    ],
    "matrix": [
        (
            "a failure counts as not applicable",
            'domain, "FAILED", reason)',
            'domain, "n.a.", reason)',
        ),
    ],
}

MUTANTS = [Mutant(module, *entry) for module, entries in TABLE.items() for entry in entries]
