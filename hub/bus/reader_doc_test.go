package bus

import (
	"fmt"
	"strings"
	"testing"

	"causeway/internal/docpage"
)

// What docs/NATS.md says that a reader may do is what he may do.
func TestReference(t *testing.T) {
	p := ReaderPermissions("NAME")
	var b strings.Builder
	b.WriteString("| may | subjects |\n|---|---|\n")
	for _, l := range []struct {
		may      string
		subjects []string
	}{{"subscribe to", p.Subscribe.Allow}, {"publish to (requests)", p.Publish.Allow}} {
		fmt.Fprintf(&b, "| %s | `%s` |\n", l.may, strings.Join(l.subjects, "`, `"))
	}
	docpage.Check(t, "../../docs/NATS.md", "reader", b.String())
	docpage.Check(t, "../../docs/NATS.md", "outside-reader", fmt.Sprintf("```\nnsc add user --account ACCOUNT --name graf --allow-sub '%s' --deny-pub '>'\n```\n", strings.Join(Followed, ",")))
}
