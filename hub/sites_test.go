package hub

import (
	"net/http"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
)

// A site is a declared object like others, whichever door it came by, and its own routes show the same.
func TestSiteIsAnObject(t *testing.T) {
	w := start(t, t.TempDir())
	c, ctx := w.client(), t.Context()
	made, err := c.CreateSite(ctx, api.SiteSpec{Name: "idc-sh", Ranges: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16"), netip.MustParsePrefix("10.1.0.0/16")}})
	require.NoError(t, err)
	o, err := c.Object(ctx, "site", "idc-sh")
	require.NoError(t, err)
	require.JSONEq(t, `{"ranges":["10.1.0.0/16","10.2.0.0/16"],"max_age":"168h0m0s","rotate_keys":"never"}`, string(o.Spec))
	require.True(t, o.Known)
	require.Equal(t, made.Created, o.Created)
	_, err = c.CreateSite(ctx, api.SiteSpec{Name: "idc-sh"})
	require.ErrorContains(t, err, "site idc-sh exists already")
	_, err = c.Apply(ctx, api.Apply{Documents: []api.ApplyDocument{{Document: []byte(`{"kind":"site","name":"idc-sh","max_age":"3d"}`)}, {Document: []byte(`{"kind":"site","name":"b"}`)}}})
	require.NoError(t, err)
	site, err := c.Site(ctx, "idc-sh")
	require.NoError(t, err)
	require.Equal(t, "72h0m0s", site.MaxAge.String())
	require.Len(t, site.Ranges, 2, "what is left out stays")
	now, err := c.Object(ctx, "site", "idc-sh")
	require.NoError(t, err)
	require.Greater(t, now.Generation, o.Generation)
	all, err := c.Objects(ctx, "site")
	require.NoError(t, err)
	require.Len(t, all, 2)
	require.Equal(t, "b", all[0].Name)

	require.ErrorIs(t, c.DeleteObject(ctx, "site", "idc-sh", api.IfMatch(o.ETag)), api.ErrStale)
	require.NoError(t, c.DeleteObject(ctx, "site", "idc-sh", api.IfMatch(now.ETag)))
	_, err = c.Site(ctx, "idc-sh")
	require.ErrorIs(t, err, api.ErrNotFound)
	require.ErrorContains(t, c.DeleteObject(ctx, "site", "idc-sh"), `there is no site "idc-sh"; there are b`)
	code, _ := w.call(http.MethodDelete, "/v1/sites/b", nil, nil)
	require.Equal(t, http.StatusNoContent, code)

	audit, err := c.Audit(ctx, 10)
	require.NoError(t, err)
	var lines []string
	for _, e := range audit {
		lines = append(lines, e.Changes...)
	}
	require.Contains(t, lines, "site idc-sh declared: ranges 10.1.0.0/16 10.2.0.0/16; max_age 72h0m0s; rotate_keys never")
	require.Contains(t, lines, "site b deleted")
}
