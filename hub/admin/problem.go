package admin

import (
	"encoding/json"
	"fmt"

	"github.com/danielgtaylor/huma/v2"
)

// Bounds of a problem document: what was refused may be as long as a request.
const (
	maxDetail        = 1000
	maxProblemParts  = 10
	maxPartMessage   = 300
	maxPartLocation  = 200
	maxRefusedValue  = 200 // as JSON; a longer one is not quoted
	maxProblemLength = 8 << 10
)

// boundProblem is a transformer of huma: it keeps a problem document from quoting
// whatever was sent.
func boundProblem(_ huma.Context, _ string, v any) (any, error) {
	if p, ok := v.(*huma.ErrorModel); ok {
		return boundedProblem(p), nil
	}
	return v, nil
}

func boundedProblem(p *huma.ErrorModel) *huma.ErrorModel {
	out := *p
	out.Detail = shortened(p.Detail, maxDetail)
	out.Errors = nil
	for i, e := range p.Errors {
		if i == maxProblemParts {
			out.Errors = append(out.Errors, &huma.ErrorDetail{Message: fmt.Sprintf("and %d more", len(p.Errors)-i)})
			break
		}
		part := &huma.ErrorDetail{Message: shortened(e.Message, maxPartMessage), Location: shortened(e.Location, maxPartLocation)}
		if b, err := json.Marshal(e.Value); err == nil && len(b) <= maxRefusedValue {
			part.Value = e.Value
		}
		out.Errors = append(out.Errors, part)
	}
	return &out
}

// shortened is s, or its beginning and a mark.
func shortened(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	for limit > 0 && s[limit]&0xc0 == 0x80 { // in the middle of a rune
		limit--
	}
	return s[:limit] + "…"
}
