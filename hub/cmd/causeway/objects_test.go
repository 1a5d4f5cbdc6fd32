package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
)

// What a newer hub wrote is shown as far as it goes.
func TestObjectOfANewerHub(t *testing.T) {
	o := api.Object{Kind: "limit", Name: "strange", Spec: json.RawMessage(`{"by":"moon\u001b[2J"}`)}
	require.Equal(t, "of a newer hub", statusText(o))
	require.Equal(t, "by=moon [2J", specText(o))
	var out strings.Builder
	c := &cli{frame.New(nil, &out, nil)}
	require.NoError(t, c.showObject(o))
	require.Contains(t, out.String(), "Mind        a newer hub wrote it; ")
}

// Of many findings the worst are shown, and how many are not.
func TestFindingsLeftOut(t *testing.T) {
	var p frame.Page
	checkupPage(&p, api.Checkup{Findings: []api.Finding{{Severity: api.SeverityWarning, Check: "condition-firewall", Where: "sh-1", Summary: "docker drops"}}, LeftOut: 3})
	require.Equal(t, "warning   sh-1: condition-firewall\n          docker drops\n\nand 3 more, less severe: mend these first\n", p.String())
}
