package main

// compared is one line below the table: a ratio of two columns or a figure by
// itself, with the target that stands beside it.
type compared struct {
	What     string   `json:"what"`
	Estimate estimate `json:"estimate"`
	Target   string   `json:"target,omitempty"`
}

// comparison says how the values of a line come from a round's figures.
type comparison struct {
	what   string
	target string
	// of gives the value of each round that has it.
	of func(*result) map[int]float64
}

// ratio divides a figure of one column by another column's of the same round.
func ratio(figure, over, under, target string) comparison {
	return comparison{over + " / " + under + ", " + figure, target, func(r *result) map[int]float64 {
		out, below := map[int]float64{}, r.values(under, figure)
		for round, v := range r.values(over, figure) {
			if b := below[round]; b > 0 {
				out[round] = v / b
			}
		}
		return out
	}}
}

// alone is a column's figure; the largest where several are named.
func alone(what, target, column string, figures ...string) comparison {
	return comparison{what, target, func(r *result) map[int]float64 {
		out := map[int]float64{}
		for _, f := range figures {
			for round, v := range r.values(column, f) {
				out[round] = max(out[round], v)
			}
		}
		return out
	}}
}

// added is by how much one figure of a column is above another.
func added(what, target, column, above, base string) comparison {
	return comparison{what, target, func(r *result) map[int]float64 {
		out, b := map[int]float64{}, r.values(column, base)
		for round, v := range r.values(column, above) {
			out[round] = v - b[round]
		}
		return out
	}}
}

// comparisons are the figures that the project set itself, and what helps to
// read them.
func comparisons(mode string) []comparison {
	hubCPU := "<= 0.7"
	if mode == modeFrames {
		hubCPU = "<= 1.4"
	}
	return []comparison{
		ratio(figTCP1, colInlineDirect, colWGDirect, ">= 1.7"),
		ratio(figTCP8, colInlineDirect, colWGDirect, ">= 1.8"),
		ratio(figTCP1, colInlineRelay, colWGHub, ">= 2.3"),
		ratio(figTCP8, colInlineRelay, colWGHub, ">= 2.3"),
		ratio(figTCP1, colInlineRelay, colInlineDirect, ">= 0.75"),
		ratio(figTCP8, colInlineRelay, colInlineDirect, ">= 0.75"),
		ratio(figTCP1, colInlineStream, colInlineDirect, ">= 0.45"),
		ratio(figTCP8, colInlineStream, colInlineDirect, ">= 0.45"),
		ratio(figUDP, colInlineDirect, colWGDirect, ">= 3"),
		ratio(figUDP, colInlineRelay, colWGHub, ">= 3"),
		ratio(figLoadedP99, colInlineDirect, colWGDirect, "<= 0.6"),
		ratio(figLoadedP99, colInlineRelay, colWGDirect, "<= 0.8"),
		alone("inline-relay hub, tcp1 CPU-s/GB", hubCPU, colInlineRelay, figCPU1+roleHub),
		alone("inline-relay hub, tcp8 CPU-s/GB", hubCPU, colInlineRelay, figCPU8+roleHub),
		alone("inline-direct larger agent, idle MB", "<= 40", colInlineDirect, figIdleMB+roleSender, figIdleMB+roleReceiver),
		alone("inline-direct larger agent, tcp8 MB", "<= 60", colInlineDirect, figLoadedMB+roleSender, figLoadedMB+roleReceiver),
		alone("inline-relay larger agent, tcp8 MB", "<= 60", colInlineRelay, figLoadedMB+roleSender, figLoadedMB+roleReceiver),
		added("inline-relay hub, MB added by tcp8", "<= 16", colInlineRelay, figLoadedMB+roleHub, figIdleMB+roleHub),
		ratio(figTCP10, colRelayTen, colInlineRelay, ">= 0.9"),
		ratio(figTCP10, colDirectMany, colInlineDirect, ">= 0.95"),
		ratio(figTCP10, colDirectMany, colDirectTen, ""),
		ratio(figTCP10, colRelayTen, colDirectTen, ""),
		ratio(figTCP10, colDirectTen, colInlineDirect, ""),
		ratio(figTCP10, colWGTen, colWGDirect, ""),
		ratio(figTCP10, colPlainTen, colPlain, ""),
		ratio(figTCP1, colSmallBuffers, colWGHub, ">= 2.3"),
		ratio(figTCP8, colSmallBuffers, colWGHub, ">= 2.3"),
		ratio(figTCP1, colSmallBuffers, colInlineRelay, ""),
		ratio(figTCP8, colSmallBuffers, colInlineRelay, ""),
		ratio(figTCP1, colWggoDirect, colWGDirect, ""),
		ratio(figTCP1, colWggoRelay, colWGHub, ""),
		ratio(figTCP1, colInlineDirect, colPlain, ""),
	}
}

// compare fills the lines for which there were columns.
func compare(r *result) (out []compared) {
	for _, c := range comparisons(r.Options.Mode) {
		var v []float64
		for _, x := range c.of(r) {
			v = append(v, x)
		}
		if len(v) > 0 {
			out = append(out, compared{c.what, estimateOf(v), c.target})
		}
	}
	return out
}
